"""What must hold for every simulation."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from soaprl.errors import SimulationError, StrategyError, UnknownNameError
from soaprl.simulator import Problem, SimulationOptions, Simulator, simulate, write_trace
from soaprl.simulator.timeline import dependencies, task_ids
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.simulator.random_problems import random_graph, random_problem, random_strategy
from tests.toys import (
    TableCost,
    ToyBuilder,
    chain,
    data_parallel_toy,
    on_one_device,
    toy_type,
    uniform_cluster,
)


@pytest.mark.parametrize("seed", range(5))
def test_more_bandwidth_is_never_slower_without_contention(seed: int) -> None:
    rng = random.Random(seed)
    graph = chain(num_operators=6, sample=2, channel=2)
    strategy = Strategy(tuple(OpConfig((1, 1, 1), (rng.randrange(3),)) for _ in graph.operators))
    times = [
        Simulator(Problem(graph=graph, cluster=uniform_cluster(3, bandwidth=b), cost=TableCost()))
        .evaluate(strategy)
        .iteration_time_s
        for b in (0.5, 1.0, 3.0, 10.0)
    ]
    assert times == sorted(times, reverse=True)


def test_more_bytes_are_never_faster_without_contention() -> None:
    times = []
    for itemsize in (1, 2, 4, 8):
        builder = ToyBuilder(sample=2, itemsize=itemsize)
        builder.linear("b", builder.linear("a", builder.input("x", channel=2), 2), 2)
        graph = builder.build()
        problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
        strategy = Strategy((OpConfig((1, 1, 1), (0,)), OpConfig((1, 1, 1), (1,))))
        times.append(Simulator(problem).evaluate(strategy).iteration_time_s)
    assert times == sorted(times)
    assert times[0] < times[-1]


@pytest.mark.parametrize("seed", range(10))
def test_result_is_at_least_the_longest_path_of_task_times(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=6)
    strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
    simulator = Simulator(problem)
    time_s = simulator.evaluate(strategy).iteration_time_s
    work = simulator.engine.graph.work
    ids = task_ids(simulator.engine)
    edges = dependencies(simulator.engine, ids)
    longest = work.duration_s[ids].copy()
    for before, after in sorted(zip(edges.before.tolist(), edges.after.tolist(), strict=True)):
        assert before < after
        longest[after] = max(longest[after], longest[before] + work.duration_s[ids[after]])
    assert longest.max() <= time_s * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_relabelling_equal_devices_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, num_operators=6)
    problem = Problem(graph=graph, cluster=uniform_cluster(4, bandwidth=2.0, latency=0.25), cost=TableCost())
    strategy = random_strategy(rng, graph, 4)
    order = rng.sample(range(4), 4)
    renamed = Strategy(
        tuple(OpConfig(c.degrees, tuple(order[d] for d in c.devices)) for c in strategy.configs)
    )
    before, after = simulate(problem, strategy), simulate(problem, renamed)
    assert after.iteration_time_s == before.iteration_time_s
    assert after.communication_bytes == before.communication_bytes
    assert after.device_busy_s[order].tolist() == pytest.approx(before.device_busy_s.tolist())
    assert after.memory.peak_bytes[order].tolist() == before.memory.peak_bytes.tolist()


_IN_ANOTHER_PROCESS = """
import random
from soaprl.simulator import Simulator
from tests.simulator.random_problems import random_problem, random_strategy
rng = random.Random(7)
problem = random_problem(rng, num_operators=8)
print(Simulator(problem).evaluate(random_strategy(rng, problem.graph, problem.cluster.num_devices)))
"""


def test_another_process_with_other_hashes_finds_the_same() -> None:
    rng = random.Random(7)
    problem = random_problem(rng, num_operators=8)
    here = Simulator(problem).evaluate(random_strategy(rng, problem.graph, problem.cluster.num_devices))
    environment = {**os.environ, "PYTHONHASHSEED": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _IN_ANOTHER_PROCESS]
    there = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == repr(here)


@pytest.mark.parametrize("seed", range(5))
def test_memory_on_one_device_is_that_of_a_replay_of_the_timeline(seed: int) -> None:
    rng = random.Random(seed)
    builder = ToyBuilder(sample=2)
    tensor = builder.input("x", channel=2)
    for i in range(5):
        linear = rng.random() < 0.5
        tensor = builder.linear(f"op{i}", tensor, 2) if linear else builder.window(f"op{i}", tensor)
    graph = builder.build()
    result = simulate(
        Problem(graph=graph, cluster=uniform_cluster(1), cost=TableCost()), on_one_device(graph)
    )
    tasks, count = result.tasks, len(graph.operators)
    start = {
        (int(k), int(o)): float(s) for k, o, s in zip(tasks.kind, tasks.operator, tasks.start_s, strict=True)
    }
    finish = {
        (int(k), int(o)): float(s) for k, o, s in zip(tasks.kind, tasks.operator, tasks.finish_s, strict=True)
    }
    # All readers save what they read. Each tensor: from its writing to its last reader's backward.
    lives = []
    for i, operator in enumerate(graph.operators):
        readers = [c for c, _ in graph.consumers[operator.outputs[0].tensor]]
        end = finish[2, min(readers)] if readers else finish[0, i]
        lives.append((start[0, i], end))
        if readers:
            lives.append((start[2, max(readers)], finish[2, i]))
        if operator.inputs[0].tensor == 0:
            lives.append((start[0, i], finish[2, i]))
    moments = [(s + f) / 2 for s, f in zip(tasks.start_s, tasks.finish_s, strict=True) if f > s]
    assert len(moments) == 2 * count
    replayed = max(16 * sum(a <= m <= b for a, b in lives) for m in moments)
    assert result.memory.activations_bytes.tolist() == [replayed]


def test_strategy_that_does_not_fit_is_infeasible() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    for memory_bytes, fits in ((56, True), (55, False)):
        cluster = uniform_cluster(1, device_types=(toy_type(memory_bytes=memory_bytes),))
        problem = Problem(graph=graph, cluster=cluster, cost=TableCost())
        assert Simulator(problem).evaluate(on_one_device(graph)).feasible is fits


def test_trace_file_has_every_computation_and_names_its_rows(tmp_path: Path) -> None:
    graph = chain(num_operators=3)
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
    result = simulate(problem, data_parallel_toy(graph, 2))
    write_trace(result, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert rows[0, 1] == "d1"
    slices = [e for e in events if e["ph"] == "X"]
    assert all((e["pid"], e["tid"]) in rows for e in slices)
    busy = [sum(e["dur"] for e in slices if (e["pid"], e["tid"]) == (0, d)) for d in range(2)]
    assert np.array(busy) / 1e6 == pytest.approx(result.device_busy_s)


@pytest.mark.parametrize(
    "config",
    [OpConfig((1, 1), (0,)), OpConfig((2, 1, 1), (0,)), OpConfig((1, 1, 1), (9,)), OpConfig((9, 1, 1), (0,))],
)
def test_illegal_configuration_is_refused_and_leaves_the_simulator_as_it_was(config: OpConfig) -> None:
    graph = chain(num_operators=2)
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
    simulator, legal = Simulator(problem), data_parallel_toy(graph, 2)
    before = simulator.evaluate(legal)
    with pytest.raises(StrategyError, match="op1"):
        simulator.evaluate(legal.replaced(1, config))
    assert simulator.evaluate(legal) == before


def test_strategy_of_another_model_is_refused() -> None:
    problem = Problem(graph=chain(num_operators=2), cluster=uniform_cluster(1), cost=TableCost())
    with pytest.raises(StrategyError, match="expected 2 configurations"):
        Simulator(problem).evaluate(on_one_device(chain(num_operators=3)))


def test_simulator_of_another_problem_is_refused() -> None:
    graph = chain(num_operators=2)
    problem = Problem(graph=graph, cluster=uniform_cluster(1), cost=TableCost())
    other = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
    with pytest.raises(SimulationError, match="another"):
        simulate(problem, on_one_device(graph), simulator=Simulator(other))


def test_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="adam"):
        SimulationOptions(optimizer="adan")
