"""`soaprl search --chains`: several chains from the command line."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soaprl.cli import searching
from soaprl.search.task import Budget, Progress, ProgressReport
from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


def test_several_chains_find_the_same_each_time_and_spend_the_budget(
    soaprl: Soaprl, graph_file: Path
) -> None:
    words = ["search", graph_file, "-c", "p100-1x4", "--json", "--chains", "3", "--budget-evals", "100"]
    first, second = soaprl(*words), soaprl(*words)
    assert first.code == second.code == 0, first.err
    assert first.json["num_evaluations"] == 100
    assert first.json["strategy"]["operators"] == second.json["strategy"]["operators"]
    assert first.json["iteration_time_s"] == second.json["iteration_time_s"]


def test_an_interrupted_search_with_chains_goes_on_to_what_it_would_have_found(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "strategy.json", tmp_path / "strategy.state.json"
    words = ["search", graph_file, "-c", "p100-1x4", "--json", "--chains", "2"]

    @contextmanager
    def interrupting(budget: Budget) -> Iterator[Progress]:
        sent: list[bool] = []

        def listen(report: ProgressReport) -> None:
            if report.num_evaluations > 1 and not sent:
                sent.append(True)
                signal.raise_signal(signal.SIGINT)

        yield listen

    with monkeypatch.context() as patch:
        patch.setattr(searching, "show_progress", interrupting)
        stopped = soaprl(*words, "--budget-evals", "1000000", "--out", path)
    assert stopped.code == 130
    assert json.loads(path.read_text()) == stopped.json["strategy"]
    more = str(stopped.json["num_evaluations"] + 1000)
    resumed = soaprl(*words, "--budget-evals", more, "--resume", state)
    whole = soaprl(*words, "--budget-evals", more)
    assert resumed.code == whole.code == 0, resumed.err
    assert resumed.json["strategy"]["operators"] == whole.json["strategy"]["operators"]
    assert resumed.json["num_evaluations"] == whole.json["num_evaluations"] == int(more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chains", "0"], "greater than or equal to 1"),
        (["--chains", "2", "--method", "random"], "these can: mcmc"),
    ],
)
def test_chains_that_cannot_be_are_refused(
    soaprl: Soaprl, graph_file: Path, words: list[str], message: str
) -> None:
    finished = soaprl("search", graph_file, "-c", "p100-1x2", *words)
    assert finished.code == 2
    assert message in finished.err
