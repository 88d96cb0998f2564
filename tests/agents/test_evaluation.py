import json
from math import inf
from pathlib import Path

import pytest
import torch
from soaprl_agents.checkpoints import CONFIG, Checkpoint, save_checkpoint
from soaprl_agents.evaluation.command import evaluation_plan
from soaprl_agents.evaluation.records import Record
from soaprl_agents.evaluation.report import headline, markdown, write_report
from soaprl_agents.evaluation.runs import (
    Entry,
    EvaluationPlan,
    PolicyLabel,
    _run_all,
    planned_runs,
    run_plan,
)
from soaprl_agents.evaluation.statistics import Cell, Summary, geometric_mean, summarize
from soaprl_agents.methods import learned_methods
from soaprl_envs.problems import FixedProblems

from soaprl.errors import PolicyError
from soaprl.search.registry import methods
from tests.agents.networks import decided_network, larger_problem, small_problem


def record(
    problem: str,
    method: str,
    seed: int,
    *steps: tuple[int, float, float],
    budget: int = 10,
    policy: str = "",
) -> Record:
    return Record(
        problem=problem,
        method=method,
        seed=seed,
        policy=policy,
        budget=budget,
        evaluations=tuple(number for number, _, _ in steps),
        seconds=tuple(seconds for _, seconds, _ in steps),
        best_s=tuple(best for _, _, best in steps),
        search_time_s=1.0,
    )


def plan(folder: Path, *names: str, seeds: tuple[int, ...] = (0, 1)) -> EvaluationPlan:
    learned = learned_methods(folder)
    toy = PolicyLabel("toy", "toy", 7)
    entries = [Entry(learned[n], toy) if n in learned else Entry(methods()[n]) for n in names]
    return EvaluationPlan(
        problems=FixedProblems([small_problem(), larger_problem()]),
        entries=tuple(entries),
        budgets=(1, 10),
        seeds=seeds,
        folder=folder / "runs",
    )


def saved_policies(folder: Path, *seeds: int) -> list[Path]:
    """Checkpoints of networks that differ, of trainings with these seeds."""
    found = []
    for seed in seeds:
        found.append(folder / f"policy-{seed}")
        found[-1].mkdir()
        trained = Checkpoint(network=decided_network(seed), name="toy", training={"recipe": {"seed": seed}})
        save_checkpoint(found[-1], trained)
    return found


def without_seconds(found: list[Record]) -> list[Record]:
    return [one.model_copy(update={"seconds": (), "search_time_s": 0.0}) for one in found]


def say_nothing(done: int, of: int, what: str) -> None:
    pass


def cell(summary: Summary, method: str, budget: int) -> Cell:
    return next(c for c in summary.cells if (c.method, c.budget) == (method, budget))


def test_a_run_is_read_at_any_budget() -> None:
    known = record("p", "random", 0, (2, 0.1, 5.0), (7, 0.4, 3.0))
    assert [known.best_at(n) for n in (1, 2, 6, 7, 100)] == [inf, 5.0, 5.0, 3.0, 3.0]
    assert [known.found_at(n) for n in (1, 2, 100)] == [inf, 0.1, 0.4]
    assert [known.best_after(s) for s in (0.05, 0.2, 0.4)] == [inf, 5.0, 3.0]


def test_scores_and_ratios_are_those_computed_by_hand(tmp_path: Path) -> None:
    chosen = plan(tmp_path, "random", "mcmc")
    one, other = chosen.problems.names
    records = []
    for seed in (0, 1):
        # 4 s and 2 s against 2 s and 2 s; at one evaluation 8 s and nothing against 4 s and 4 s.
        records += [
            record(one, "random", seed, (1, 0.1, 8.0), (9, 0.5, 4.0)),
            record(other, "random", seed, (5, 0.1, 2.0)),
        ]
        records += [record(name, "mcmc", seed, (1, 0.1, 2.0)) for name in (one, other)]
        records += [record(name, "mcmc", seed, (1, 0.1, 4.0), budget=1) for name in (one, other)]
    summary = summarize(chosen, records)
    late, early = cell(summary, "random", 10), cell(summary, "random", 1)
    assert late.ratio == pytest.approx(2**0.5), "the geometric mean of 4 / 2 and 2 / 2"
    assert early.ratio == pytest.approx(2.0), "only the first problem compares"
    assert late.iqm == pytest.approx((0.5 + 1.0) / 2)
    assert late.optimality_gap == pytest.approx(0.25)
    assert early.wins == 0.0
    assert late.wins == 0.25, "a tie counts half"
    assert late.low <= late.iqm <= late.high
    assert cell(summary, "mcmc", 10).ratio == 1.0


def test_the_same_runs_have_the_same_intervals_whatever_was_drawn_before(tmp_path: Path) -> None:
    import numpy as np

    chosen = plan(tmp_path, "random", seeds=tuple(range(10)))
    times = np.random.default_rng(0).uniform(1, 2, (10, 2)).tolist()
    records = [
        record(name, "random", seed, (1, 0.1, time_s))
        for seed, row in enumerate(times)
        for name, time_s in zip(chosen.problems.names, row, strict=True)
    ]
    np.random.seed(7)  # noqa: NPY002
    first = summarize(chosen, records)
    drawn = np.random.random(3).tolist()  # noqa: NPY002
    assert summarize(chosen, records) == first
    np.random.seed(7)  # noqa: NPY002
    assert np.random.random(3).tolist() == drawn, "and nobody else's draws change"  # noqa: NPY002
    assert cell(first, "random", 10).low < cell(first, "random", 10).high


def test_nothing_compares_where_one_of_both_does_not_fit() -> None:
    import numpy as np

    assert geometric_mean(np.array([inf, 1.0]), np.array([1.0, inf])) is None


def test_runs_are_made_once_and_written_about(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(network=decided_network(), name="toy"))
    chosen = plan(tmp_path, "data-parallel", "mcmc", "megatron", "policy", seeds=(0,))
    first = list(run_plan(chosen, say_nothing))
    files = {path: path.read_bytes() for path in chosen.folder.iterdir()}
    assert len(files) == len(first) == 2 * (1 + 2 + 1 + 1)
    again = list(run_plan(chosen, say_nothing))
    assert again == first
    assert {path: path.read_bytes() for path in chosen.folder.iterdir()} == files
    skipped = [r for r in first if r.method == "megatron"]
    assert all(r.skipped for r in skipped)
    summary = summarize(chosen, first)
    assert {c.method for c in summary.cells} == {"data-parallel", "mcmc", "policy"}
    assert cell(summary, "policy", 10).optimality_gap >= 0.0
    write_report(tmp_path / "report", "toys", summary)
    written = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert len(written["cells"]) == 6
    assert (tmp_path / "report" / "summary.md").read_text() == markdown("toys", summary)
    for name in ("anytime.png", "profiles.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_damaged_runs_and_wrong_wishes_are_errors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(network=decided_network(), name="toy"))
    chosen = plan(tmp_path, "data-parallel")
    list(run_plan(chosen, say_nothing))
    next(chosen.folder.iterdir()).write_text("{}")
    with pytest.raises(PolicyError, match="expected a run"):
        list(run_plan(chosen, say_nothing))
    wishes = {"policies": (tmp_path,), "suite": "small", "methods": (), "num_seeds": 1, "folder": tmp_path}
    with pytest.raises(PolicyError, match="expected budgets"):
        evaluation_plan(**wishes, only=(), budgets="many")
    with pytest.raises(PolicyError, match="'small' has none"):
        evaluation_plan(**wishes, only=("llama",), budgets="1")
    assert evaluation_plan(**wishes, only=("lenet",), budgets="16,1").budgets == (1, 16)


def test_runs_of_several_policies_are_pooled_and_compared_seed_by_seed(tmp_path: Path) -> None:
    one, other = PolicyLabel("aa", "toy", 0), PolicyLabel("bb", "toy", 1)
    method = learned_methods()["policy"]
    chosen = EvaluationPlan(
        problems=FixedProblems([small_problem()]),
        entries=(Entry(methods()["mcmc"]), Entry(method, one), Entry(method, other)),
        budgets=(10,),
        seeds=(0, 1),
        folder=tmp_path,
    )
    (name,) = chosen.problems.names
    best_s = {("aa", 0): 1.0, ("aa", 1): 2.0, ("bb", 0): 4.0, ("bb", 1): 4.0}
    records = [record(name, "mcmc", seed, (1, 0.1, time_s)) for seed, time_s in ((0, 2.0), (1, 8.0))]
    records += [record(name, "policy", s, (1, 0.1, t), policy=p) for (p, s), t in best_s.items()]
    summary = summarize(chosen, records)
    found = cell(summary, "policy", 10)
    assert summary.policies == (one, other)
    assert found.iqm == pytest.approx((0.5 + 0.25) / 2), "of 1, 1/2, 1/4, 1/4 the middle half"
    assert found.iqm_by_policy == pytest.approx((0.75, 0.25))
    assert found.ratio == pytest.approx((1 / 2 * 2 / 8 * 4 / 2 * 4 / 8) ** 0.25)
    assert found.wins == 0.75, "only policy bb with seed 0 is slower than mcmc with seed 0"
    assert cell(summary, "mcmc", 10).iqm_by_policy == ()
    assert cell(summary, "mcmc", 10).iqm == pytest.approx((0.5 + 0.125) / 2)
    assert (
        headline("toys", summary) == "toys: 1 problem, 2 policies (toy; training seeds 0, 1), 2 search seeds"
    )
    assert "| policy | 10 | 0.750 | 0.250 |" in markdown("toys", summary)
    assert summary.as_json()["policies"][1] == {"digest": "bb", "name": "toy", "seed": 1, "members": 1}


def test_a_method_with_a_policy_runs_once_for_each_policy_and_seed(tmp_path: Path) -> None:
    chosen = evaluation_plan(
        policies=saved_policies(tmp_path, 3, 5),
        suite="small",
        only=("synthetic-0",),
        methods=(methods()["mcmc"], learned_methods()["policy"]),
        budgets="1,8",
        num_seeds=2,
        folder=tmp_path / "runs",
    )
    assert [label.seed for label in chosen.policies] == [3, 5]
    found = list(run_plan(chosen, say_nothing))
    first, second = (label.digest for label in chosen.policies)
    runs = [(r.method, r.policy, r.seed, r.budget) for r in found]
    assert runs[:4] == [("mcmc", "", seed, budget) for seed in (0, 1) for budget in (1, 8)]
    assert runs[4:] == [("policy", digest, seed, 8) for digest in (first, second) for seed in (0, 1)]
    assert found[4].best_s != found[6].best_s, "these networks propose different strategies"


def test_runs_do_not_depend_on_how_many_processes_make_them(tmp_path: Path) -> None:
    def chosen(folder: Path) -> EvaluationPlan:
        folder.mkdir()
        save_checkpoint(folder, Checkpoint(network=decided_network(), name="toy"))
        return plan(folder, "data-parallel", "mcmc", "policy", seeds=(0,))

    alone, shared = chosen(tmp_path / "alone"), chosen(tmp_path / "shared")
    told: list[tuple[int, int]] = []
    expected = without_seconds(list(run_plan(alone, say_nothing)))
    found = run_plan(shared, lambda done, of, what: told.append((done, of)), workers=2)
    assert without_seconds(list(found)) == expected
    assert (8, 8) in told
    kept = {path: path.read_bytes() for path in shared.folder.iterdir()}
    gone = next(path for path in kept if "policy" in path.name)
    gone.unlink()
    assert without_seconds(list(run_plan(shared, say_nothing, workers=2))) == expected
    assert all(path.read_bytes() == content for path, content in kept.items() if path != gone)


def test_processes_begin_no_run_that_nobody_waits_for(tmp_path: Path) -> None:
    chosen = plan(tmp_path, "data-parallel", seeds=(0,))
    chosen.folder.mkdir()
    runs = list(planned_runs(chosen))[:1]
    _run_all(chosen.problems, runs, tmp_path / "gone")
    assert not list(chosen.folder.iterdir())
    _run_all(chosen.problems, runs, tmp_path)
    assert [path.name for path in chosen.folder.iterdir()] == [runs[0].path.name]


def test_torch_has_as_many_threads_after_an_evaluation_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for _ in run_plan(plan(tmp_path, "data-parallel"), say_nothing):
        assert torch.get_num_threads() == before


def test_policies_that_cannot_be_judged_together_are_errors(tmp_path: Path) -> None:
    one, other = saved_policies(tmp_path, 0, 1)
    wishes = {"suite": "small", "only": (), "methods": (), "budgets": "1", "num_seeds": 1, "folder": tmp_path}
    with pytest.raises(PolicyError, match=r"found the same weights in .*policy-0 and .*policy-0"):
        evaluation_plan(policies=(one, other, one), **wishes)
    with pytest.raises(PolicyError, match="Name the folder of a trained policy"):
        evaluation_plan(policies=(one, tmp_path / "nowhere"), **wishes)
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps({**config, "features": "0-older"}))
    with pytest.raises(PolicyError, match=r"policy-1.*expected the features .* found '0-older'"):
        evaluation_plan(policies=(one, other), **wishes)
