"""`soaprl compare` with several seeds, methods that do not apply, JSON and plot."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soaprl.cli import comparing
from soaprl.cli.known import known_methods
from soaprl.search.task import Budget, Progress, ProgressReport
from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


def test_methods_that_search_run_once_for_each_seed_under_equal_budgets(
    soaprl: Soaprl, graph_file: Path
) -> None:
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "data-parallel,random,annealing"]
    found = soaprl(*words, "--budget-evals", "40", "--seeds", "3", "--seed", "5", "--json").json
    runs = [(row["method"], row["seed"]) for row in found["results"]]
    assert runs == [
        ("data-parallel", 5),
        *(("random", seed) for seed in (5, 6, 7)),
        *(("annealing", seed) for seed in (5, 6, 7)),
    ]
    assert {row["num_evaluations"] for row in found["results"]} == {1, 40}
    for row in found["results"]:
        assert row["history"]["best_iteration_time_s"][-1] == row["iteration_time_s"]
    for row in found["summary"]:
        times = sorted(r["iteration_time_s"] for r in found["results"] if r["method"] == row["method"])
        assert row["num_seeds"] == len(times)
        assert row["best_iteration_time_s"] == times[0]
        assert row["median_iteration_time_s"] == times[len(times) // 2]
        assert row["worst_iteration_time_s"] == times[-1]


def test_a_table_of_several_seeds_shows_their_range(soaprl: Soaprl, graph_file: Path) -> None:
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "data-parallel,random"]
    done = soaprl(*words, "--budget-evals", "10", "--seeds", "2")
    assert done.code == 0, done.err
    assert "range over seeds" in done.out
    assert "of 2" in done.out
    assert "range over seeds" not in soaprl(*words, "--budget-evals", "10").out


def test_methods_that_do_not_apply_are_listed_with_the_reason(soaprl: Soaprl, graph_file: Path) -> None:
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "megatron,data-parallel,gnmt-expert"]
    done = soaprl(*words)
    assert done.code == 0, done.err
    assert "1.00x" in done.out
    assert "'chain' is no transformer" in done.out
    found = soaprl(*words, "--json").json
    assert [row["method"] for row in found["results"]] == ["data-parallel"]
    assert [row["method"] for row in found["skipped"]] == ["megatron", "gnmt-expert"]
    assert found["skipped"][1]["reason"].startswith("'chain' is no recurrent network")


def test_a_comparison_of_nothing_that_applies_is_one_error(soaprl: Soaprl, graph_file: Path) -> None:
    done = soaprl("compare", graph_file, "-c", "p100-1x4", "--methods", "megatron,gnmt-expert")
    assert done.code == 2
    assert done.out == ""
    assert "none of the methods applies" in done.err
    assert "no recurrent network" in done.err


def test_a_method_that_does_not_apply_is_one_error_of_search(soaprl: Soaprl, graph_file: Path) -> None:
    done = soaprl("search", graph_file, "-c", "p100-1x4", "-m", "megatron")
    assert done.code == 2
    assert "method 'megatron' does not apply: 'chain' is no transformer" in done.err.splitlines()[-1]


def test_all_stands_for_every_method_and_repeated_names_run_once() -> None:
    names = [[method.name for method in comparing.chosen_methods(word)] for word in ("all", "random, all")]
    assert names[0] == list(known_methods())
    assert names[1][0] == "random"
    assert [method.name for method in comparing.chosen_methods("mcmc,mcmc")] == ["mcmc"]


def test_json_and_plot_are_written_where_they_are_named(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    out, plot = tmp_path / "runs.json", tmp_path / "runs.png"
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "data-parallel,evolution"]
    done = soaprl(*words, "--budget-evals", "40", "--seeds", "2", "--out", out, "--plot", plot, "--json")
    assert done.code == 0, done.err
    assert json.loads(out.read_text()) == done.json
    assert plot.read_bytes()[1:4] == b"PNG"
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("option", "name"), [("--out", "no/runs.json"), ("--plot", "no/runs.png"), ("--plot", "x.txt")]
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path, option: str, name: str
) -> None:
    done = soaprl("compare", graph_file, "-c", "p100-1x4", option, tmp_path / name, "--budget-evals", "10")
    assert done.code == 2
    assert "cannot write" in done.err
    assert done.out == ""


def test_an_interrupted_comparison_shows_what_it_has(
    soaprl: Soaprl, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupting(budget: Budget) -> Iterator[Progress]:
        def listen(report: ProgressReport) -> None:
            if report.method == "random" and report.num_evaluations > 1:
                signal.raise_signal(signal.SIGINT)

        yield listen

    monkeypatch.setattr(comparing, "show_progress", interrupting)
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "data-parallel,random,mcmc", "--json"]
    done = soaprl(*words, "--budget-evals", "10000000")
    assert done.code == 130
    assert [row["method"] for row in done.json["results"]] == ["data-parallel", "random"]
    assert [row["interrupted"] for row in done.json["results"]] == [False, True]


def test_the_listing_says_which_methods_begin_with_a_strategy_and_which_have_chains(soaprl: Soaprl) -> None:
    listed = {row["name"]: row for row in soaprl("methods", "--json").json["methods"]}
    assert listed["mcmc"]["chains"]
    assert listed["coordinate-descent"]["started"]
    assert not listed["megatron"]["started"]
    assert not listed["annealing"]["chains"]
