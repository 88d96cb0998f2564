"""Runs are kept by strategy: what else is asked for later adds to them."""

from pathlib import Path

import pytest

from soaprl.cluster.files import load_cluster
from soaprl.graph.capture import capture_model
from soaprl.runtime.launch_job import Job
from soaprl.runtime.measuring.runs import Run, run_strategies
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Strategy


@pytest.mark.dist
def test_other_strategies_and_further_repeats_leave_earlier_runs_alone(tmp_path: Path) -> None:
    graph, cluster = capture_model("lenet", 4), load_cluster("cpu-1x2")
    data, first_alone = data_parallel(graph, cluster), single_device(graph, cluster)
    second_alone = single_device(graph, cluster, device=1)
    job = Job(
        model="lenet",
        batch_size=4,
        strategy=data,
        num_ranks=2,
        optimizer="sgd",
        learning_rate=0.01,
        num_steps=1,
    )
    path = tmp_path / "runs.jsonl"
    heard: list[tuple[int, int]] = []

    def ran(*strategies: Strategy, repeats: int) -> list[Run]:
        heard.clear()
        return run_strategies(
            job, graph, strategies, path, repeats=repeats, listen=lambda *report: heard.append(report)
        )

    def keys(runs: list[Run]) -> list[tuple[str, int]]:
        return [(run.strategy, run.repeat) for run in runs]

    # Equal strategies are run once.
    first = ran(data, first_alone, data, repeats=1)
    assert keys(first) == [(data.fingerprint, 0), (first_alone.fingerprint, 0)]
    before = path.read_text()

    further = ran(first_alone, second_alone, repeats=2)
    assert path.read_text().startswith(before)
    assert keys(further) == [(s.fingerprint, r) for r in (0, 1) for s in (first_alone, second_alone)]
    assert further[0] == first[1]
    assert heard[0] == (1, 4)
    assert heard[-1] == (4, 4)

    before = path.read_text()
    assert ran(data, first_alone, repeats=1) == first
    assert path.read_text() == before
