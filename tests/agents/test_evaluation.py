import json
from math import inf
from pathlib import Path

import pytest
from soaprl_agents.checkpoints import Checkpoint, save_checkpoint
from soaprl_agents.evaluation.command import evaluation_plan
from soaprl_agents.evaluation.report import markdown, write_report
from soaprl_agents.evaluation.runs import EvaluationPlan, Record, run_plan
from soaprl_agents.evaluation.statistics import Cell, Summary, geometric_mean, summarize
from soaprl_agents.methods import learned_methods
from soaprl_envs.problems import FixedProblems

from soaprl.errors import PolicyError
from soaprl.search.registry import methods
from tests.agents.networks import decided_network, larger_problem, small_problem


def record(
    problem: str, method: str, seed: int, *steps: tuple[int, float, float], budget: int = 10
) -> Record:
    return Record(
        problem=problem,
        method=method,
        seed=seed,
        policy="",
        budget=budget,
        evaluations=tuple(number for number, _, _ in steps),
        seconds=tuple(seconds for _, seconds, _ in steps),
        best_s=tuple(best for _, _, best in steps),
        search_time_s=1.0,
    )


def plan(folder: Path, *names: str, seeds: tuple[int, ...] = (0, 1)) -> EvaluationPlan:
    known = {**methods(), **learned_methods(folder)}
    return EvaluationPlan(
        problems=FixedProblems([small_problem(), larger_problem()]),
        methods={name: known[name] for name in names},
        budgets=(1, 10),
        seeds=seeds,
        folder=folder / "runs",
        policy="toy",
    )


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


def test_nothing_compares_where_one_of_both_does_not_fit() -> None:
    import numpy as np

    assert geometric_mean(np.array([inf, 1.0]), np.array([1.0, inf])) is None


def test_runs_are_made_once_and_written_about(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(network=decided_network(), name="toy"))
    chosen = plan(tmp_path, "data-parallel", "mcmc", "megatron", "policy", seeds=(0,))
    first = list(run_plan(chosen, lambda done, of, what: None))
    files = {path: path.read_bytes() for path in chosen.folder.iterdir()}
    assert len(files) == len(first) == 2 * (1 + 2 + 1 + 1)
    again = list(run_plan(chosen, lambda done, of, what: None))
    assert again == first
    assert {path: path.read_bytes() for path in chosen.folder.iterdir()} == files
    skipped = [r for r in first if r.method == "megatron"]
    assert all(r.skipped for r in skipped)
    summary = summarize(chosen, first)
    assert {c.method for c in summary.cells} == {"data-parallel", "mcmc", "policy"}
    assert cell(summary, "policy", 10).optimality_gap >= 0.0
    write_report(tmp_path / "report", summary)
    written = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert len(written["cells"]) == 6
    assert (tmp_path / "report" / "summary.md").read_text() == markdown(summary)
    for name in ("anytime.png", "profiles.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_damaged_runs_and_wrong_wishes_are_errors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(network=decided_network(), name="toy"))
    chosen = plan(tmp_path, "data-parallel")
    list(run_plan(chosen, lambda done, of, what: None))
    next(chosen.folder.iterdir()).write_text("{}")
    with pytest.raises(PolicyError, match="expected a run"):
        list(run_plan(chosen, lambda done, of, what: None))
    wishes = {"policy": tmp_path, "suite": "small", "methods": {}, "num_seeds": 1, "folder": tmp_path}
    with pytest.raises(PolicyError, match="expected budgets"):
        evaluation_plan(**wishes, only=(), budgets="many")
    with pytest.raises(PolicyError, match="'small' has none"):
        evaluation_plan(**wishes, only=("llama",), budgets="1")
    assert evaluation_plan(**wishes, only=("lenet",), budgets="16,1").budgets == (1, 16)
