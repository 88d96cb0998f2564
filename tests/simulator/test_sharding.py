"""Sharded data parallelism against closed forms: memory, traffic, times.

P, G, S are bytes of parameters, gradients and optimizer state of the whole model; n devices hold all of it.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import cluster_tables
from soaprl.cost.roofline import RooflineCostModel
from soaprl.cost.transfers import all_gather_time
from soaprl.errors import SimulationError
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator import Problem, SimulationOptions, SimulationResult, Simulator, TaskKind, simulate
from soaprl.simulator.folding import Refusal, fold
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from tests.simulator.random_problems import random_problem, random_strategy
from tests.toys import TableCost, chain, data_parallel_toy, on_one_device, split, tied, uniform_cluster

N = 4
LAYERS, CHANNEL = 6, 16
LAYER_BYTES = 4 * CHANNEL * CHANNEL
P = LAYERS * LAYER_BYTES


def problem_of(
    graph: OperatorGraph, cluster: Cluster | None = None, *, prefetch: int = 1, overlap: bool = True
) -> Problem:
    options = SimulationOptions(prefetch=prefetch, overlap_synchronization=overlap)
    return Problem(
        graph=graph,
        cluster=cluster or uniform_cluster(N),
        cost=TableCost(update_s_per_byte=0.5),
        options=options,
    )


def run(sharding: Sharding, *, prefetch: int = 1) -> SimulationResult:
    """Layers whose weights are far larger than their activations, data parallel on n devices."""
    graph = chain(num_operators=LAYERS, sample=N, channel=CHANNEL)
    strategy = replace(data_parallel_toy(graph, N), sharding=sharding)
    return simulate(problem_of(graph, prefetch=prefetch), strategy)


@pytest.mark.parametrize(
    ("sharding", "parameters", "gradients", "states"),
    [
        (Sharding.NONE, P, P, 2 * P),
        (Sharding.ZERO1, P, P, 2 * P // N),
        (Sharding.ZERO2, P, P // N, 2 * P // N),
        (Sharding.ZERO3, P // N, P // N, 2 * P // N),
    ],
)
def test_each_stage_of_zero_divides_more_of_the_state_by_the_number_of_devices(
    sharding: Sharding, parameters: int, gradients: int, states: int
) -> None:
    memory = run(sharding).memory
    assert memory.parameters_bytes.tolist() == [parameters] * N
    assert memory.gradients_bytes.tolist() == [gradients] * N
    assert memory.optimizer_bytes.tolist() == [states] * N


@pytest.mark.parametrize(
    ("sharding", "prefetch", "num_layers"),
    [
        # A whole gradient, until it is scattered.
        (Sharding.ZERO1, 1, 0),
        (Sharding.ZERO2, 1, 1),
        # And the layers that are gathered, the one at work among them.
        (Sharding.ZERO3, 1, 1 + 1),
        (Sharding.ZERO3, 2, 1 + 2),
        (Sharding.ZERO3, 3, 1 + 3),
    ],
)
def test_whole_layers_pass_through_memory_as_far_as_they_are_prefetched(
    sharding: Sharding, prefetch: int, num_layers: int
) -> None:
    # Data parallelism sends no activations: these are all buffers there are.
    passing = run(sharding, prefetch=prefetch).memory.communication_bytes
    assert passing.tolist() == [num_layers * LAYER_BYTES] * N


@pytest.mark.parametrize(
    ("sharding", "prefetch", "num_layers"),
    [
        (Sharding.NONE, 1, 2 * LAYERS),
        (Sharding.ZERO1, 1, 2 * LAYERS),
        (Sharding.ZERO2, 1, 2 * LAYERS),
        # The passes of layer k are 2 (LAYERS - k) - 1 passes apart. Where that is no more than is prefetched,
        # the layer is gathered once.
        (Sharding.ZERO3, 1, 3 * LAYERS - 1),
        (Sharding.ZERO3, 2, 3 * LAYERS - 1),
        (Sharding.ZERO3, 3, 3 * LAYERS - 2),
        (Sharding.ZERO3, 4, 3 * LAYERS - 2),
        (Sharding.ZERO3, 2 * LAYERS, 2 * LAYERS),
    ],
)
def test_a_device_sends_its_share_twice_and_three_times_if_parameters_are_sharded_and_not_kept(
    sharding: Sharding, prefetch: int, num_layers: int
) -> None:
    result = run(sharding, prefetch=prefetch)
    assert result.synchronization_bytes == num_layers * (N - 1) * LAYER_BYTES
    assert result.communication_bytes == result.synchronization_bytes
    # On a uniform cluster a collective moves the bytes that are counted.
    assert result.link_bytes.sum() == pytest.approx(result.synchronization_bytes)


def run_cut(
    sharding: Sharding, m: int, *, prefetch: int = 1, schedule: Schedule = Schedule.ONE_F_ONE_B
) -> SimulationResult:
    """The layers of `run`, with m micro-batches of a sample for each device."""
    graph = chain(num_operators=LAYERS, sample=m * N, channel=CHANNEL)
    strategy = replace(data_parallel_toy(graph, N), sharding=sharding, micro_batches=m, schedule=schedule)
    return simulate(problem_of(graph, prefetch=prefetch), strategy)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("sharding", list(Sharding))
def test_micro_batches_add_up_pieces_of_gradients_and_gather_parameters_each_time(
    sharding: Sharding, schedule: Schedule, m: int
) -> None:
    result, whole = run_cut(sharding, m, schedule=schedule), run(sharding)
    for name in ("parameters_bytes", "gradients_bytes", "optimizer_bytes"):
        assert getattr(result.memory, name).tolist() == getattr(whole.memory, name).tolist()
    # An all-reduce is two halves. Level 2 scatters each time and gathers once, level 3 does all each time,
    # but keeps the last layer where its backward pass follows its forward pass.
    kept = {Schedule.NONE: 1, Schedule.GPIPE: 0, Schedule.ONE_F_ONE_B: m}[schedule]
    gathers = {
        Sharding.NONE: 0,
        Sharding.ZERO1: LAYERS,
        Sharding.ZERO2: LAYERS,
        Sharding.ZERO3: 2 * m * LAYERS - kept,
    }[sharding]
    scatters = {Sharding.NONE: 2, Sharding.ZERO1: 1, Sharding.ZERO2: m, Sharding.ZERO3: m}[sharding]
    assert result.synchronization_bytes == (scatters * LAYERS + gathers) * (N - 1) * LAYER_BYTES
    tasks = result.tasks.kind.tolist()
    each_time = m if sharding.synchronizes_each_pass else 1
    assert tasks.count(TaskKind.SYNCHRONIZATION) == LAYERS * each_time
    assert tasks.count(TaskKind.GATHER) == gathers
    assert tasks.count(TaskKind.UPDATE) == N


@pytest.mark.parametrize(
    ("sharding", "prefetch", "num_layers"),
    [
        (Sharding.ZERO1, 1, 0),
        (Sharding.ZERO2, 1, 1),
        (Sharding.ZERO3, 1, 1 + 1),
        (Sharding.ZERO3, 2, 1 + 2),
        (Sharding.ZERO3, 3, 1 + 3),
    ],
)
@pytest.mark.parametrize("m", [2, 4])
def test_with_micro_batches_no_more_layers_pass_through_memory(
    m: int, sharding: Sharding, prefetch: int, num_layers: int
) -> None:
    passing = run_cut(sharding, m, prefetch=prefetch).memory.communication_bytes
    assert passing.tolist() == [num_layers * LAYER_BYTES] * N


# The last stage keeps as many layers of each of 4 micro-batches as one device would of all layers. The passes
# of the last layer of the first stage are 4 passes apart in the first and in the last micro-batch.
@pytest.mark.parametrize(("prefetch", "num_kept"), [(1, 4), (2, 4), (4, 8 + 2)])
def test_gathers_of_a_stage_are_paced_by_its_own_passes(prefetch: int, num_kept: int) -> None:
    """Two stages of two devices with three layers each: gathers wait for passes of their stage alone."""
    graph = chain(num_operators=LAYERS, sample=8, channel=CHANNEL)
    stages = (0, 0, 0, 1, 1, 1)
    configs = tuple(split(graph, o, (2 * s, 2 * s + 1), sample=2) for o, s in enumerate(stages))
    strategy = Strategy(configs, Sharding.ZERO3, 4, Schedule.ONE_F_ONE_B, stages)
    result = simulate(problem_of(graph, prefetch=prefetch), strategy)
    pieces = result.memory.parameters_bytes.tolist()
    assert pieces == [3 * LAYER_BYTES // 2] * N
    # Whole layers: those that are prefetched, and a gradient.
    assert (result.memory.communication_bytes <= (prefetch + 1) * LAYER_BYTES + 4 * CHANNEL * 4).all()
    assert result.synchronization_bytes == (3 * 4 * LAYERS - num_kept) * LAYER_BYTES


def one_layer(sharding: Sharding) -> tuple[dict[str, tuple[float, float]], float]:
    """Start and finish of the tasks of one layer on two devices, and how long half an all-reduce takes."""
    graph = chain(num_operators=1, sample=2, channel=1)
    problem = problem_of(graph, uniform_cluster(2))
    configs = (split(graph, 0, (0, 1), sample=2), *data_parallel_toy(graph, 2).configs[1:])
    result = simulate(problem, Strategy(configs, sharding))
    tasks = result.tasks
    times = {
        tasks.name(i, graph): (float(tasks.start_s[i]), float(tasks.finish_s[i]))
        for i in range(tasks.num_tasks)
        if not tasks.name(i, graph).startswith("join")
    }
    # One weight of 4 bytes over links of 1 byte/s: each sends 2 bytes.
    half_s = all_gather_time(cluster_tables(problem.cluster), (0, 1), 4).time_s
    assert half_s == pytest.approx(2.0, abs=1e-4)
    return times, half_s


def test_zero2_updates_pieces_between_a_reduce_scatter_and_an_all_gather() -> None:
    times, half_s = one_layer(Sharding.ZERO2)
    ready_s = times["backward op0[0]"][1]
    assert ready_s == 3.0
    # Half of 4 bytes at 0.5 s each.
    update_s = ready_s + half_s, ready_s + half_s + 1.0
    assert times["synchronize op0"] == pytest.approx((ready_s, ready_s + half_s))
    assert times["update d0"] == times["update d1"] == pytest.approx(update_s)
    assert times["gather op0"] == pytest.approx((update_s[1], update_s[1] + half_s))


def test_zero3_keeps_a_single_layer_for_both_passes_and_ends_with_the_update() -> None:
    graph = chain(num_operators=1, sample=2, channel=1)
    result = simulate(
        problem_of(graph, uniform_cluster(2)), replace(data_parallel_toy(graph, 2), sharding=Sharding.ZERO3)
    )
    tasks = result.tasks
    order = sorted(
        (float(tasks.start_s[i]), float(tasks.finish_s[i]), tasks.name(i, graph))
        for i in range(tasks.num_tasks)
        if tasks.finish_s[i] > tasks.start_s[i] and tasks.source[i] != 1
    )
    assert [name for _, _, name in order] == [
        "gather op0",
        "op0[0]",
        "backward op0[0]",
        "synchronize op0",
        "update d0",
    ]
    for (_, finish_s, _), (start_s, _, _) in pairwise(order):
        assert start_s == finish_s
    assert result.iteration_time_s == order[-1][1]


def one_layer_cut(sharding: Sharding) -> tuple[float, float]:
    """The iteration time of the one layer with two micro-batches of a sample each, and half an all-reduce."""
    graph = chain(num_operators=1, sample=4, channel=1)
    problem = problem_of(graph, uniform_cluster(2))
    strategy = replace(data_parallel_toy(graph, 2), sharding=sharding)
    cut = replace(strategy, micro_batches=2, schedule=Schedule.ONE_F_ONE_B)
    half_s = all_gather_time(cluster_tables(problem.cluster), (0, 1), 4).time_s
    return simulate(problem, cut).iteration_time_s, half_s


def test_zero2_scatters_the_gradients_of_a_micro_batch_while_the_next_one_computes() -> None:
    time_s, half_s = one_layer_cut(Sharding.ZERO2)
    # Two passes of 1 s and 2 s; the second reduce-scatter, half an update of 2 s, the gather.
    assert time_s == pytest.approx(2 * 3.0 + half_s + 1.0 + half_s)


def test_zero3_gathers_a_single_layer_once_for_each_micro_batch() -> None:
    time_s, half_s = one_layer_cut(Sharding.ZERO3)
    # The first reduce-scatter has the links before the second micro-batch's first gather.
    assert time_s == pytest.approx(2 * (half_s + 1.0 + 2.0) + half_s + half_s + 1.0)


@pytest.mark.parametrize(("prefetch", "num_waited_for"), [(1, LAYERS), (2, 1), (3, 1)])
def test_gathers_that_are_prefetched_are_hidden_behind_the_layer_before(
    prefetch: int, num_waited_for: int
) -> None:
    graph = chain(num_operators=LAYERS, sample=N, channel=CHANNEL)
    problem = problem_of(graph, uniform_cluster(N, bandwidth=8.0), prefetch=prefetch)
    result = simulate(problem, replace(data_parallel_toy(graph, N), sharding=Sharding.ZERO3))
    gather_s = all_gather_time(cluster_tables(problem.cluster), range(N), LAYER_BYTES).time_s
    layer_s = float(CHANNEL * CHANNEL)
    assert gather_s < layer_s
    names = [result.tasks.name(i, graph) for i in range(result.tasks.num_tasks)]
    last_s = result.tasks.finish_s[names.index(f"op{LAYERS - 1}[0]")]
    assert last_s == pytest.approx(LAYERS * layer_s + num_waited_for * gather_s)


def test_what_one_device_holds_alone_is_not_sharded() -> None:
    graph = chain(num_operators=3, sample=4, channel=4)
    problem = problem_of(graph)
    alone = on_one_device(graph)
    expected = simulate(problem, alone)
    for sharding in Sharding:
        found = simulate(problem, replace(alone, sharding=sharding))
        assert found.iteration_time_s == expected.iteration_time_s
        assert found.memory.peak_bytes.tolist() == expected.memory.peak_bytes.tolist()
        assert found.communication_bytes == 0


def test_pieces_are_as_many_as_holders_and_padded_to_whole_bytes() -> None:
    # 3 x 3 weights of 4 bytes over 2 and over 4 devices, 36 bytes: pieces of 18 and 9; over 3 devices, 12.
    graph = chain(num_operators=1, sample=12, channel=3)
    for count in (2, 3, 4):
        devices = tuple(range(count))
        configs = tuple(split(graph, o, devices, sample=count) for o in range(len(graph.operators)))
        memory = simulate(problem_of(graph), Strategy(configs, Sharding.ZERO3)).memory
        assert memory.parameters_bytes.tolist() == [36 // count] * count + [0] * (N - count)
    narrow = chain(num_operators=1, sample=12, channel=1)
    configs = tuple(split(narrow, o, (0, 1, 2), sample=3) for o in range(len(narrow.operators)))
    assert simulate(problem_of(narrow), Strategy(configs, Sharding.ZERO1)).memory.optimizer_bytes[0] == 2 * -(
        -4 // 3
    )


def test_tied_parameters_are_gathered_once_for_all_that_read_them() -> None:
    graph = tied(sample=N, channel=CHANNEL)
    result = simulate(problem_of(graph), replace(data_parallel_toy(graph, N), sharding=Sharding.ZERO3))
    names = [result.tasks.name(i, graph) for i in range(result.tasks.num_tasks)]
    held = sum(t.num_bytes for t in graph.tensors if t.role.value == "parameter")
    # The second of the two layers, which reads them last, has its passes one after the other.
    assert result.synchronization_bytes == 2 * (N - 1) * held
    assert sum(name.startswith("gather") for name in names) == 1


def test_sharding_without_overlap_still_gathers_ahead() -> None:
    graph = chain(num_operators=3, sample=N, channel=CHANNEL)
    problem = problem_of(graph, overlap=False)
    for sharding in (Sharding.ZERO2, Sharding.ZERO3):
        result = simulate(problem, replace(data_parallel_toy(graph, N), sharding=sharding))
        tasks = result.tasks
        names = [tasks.name(i, graph) for i in range(tasks.num_tasks)]
        last_s = max(tasks.finish_s[i] for i, name in enumerate(names) if name.startswith("backward"))
        assert all(
            tasks.start_s[i] >= last_s for i, name in enumerate(names) if name.startswith("synchronize")
        )


def test_one_simulator_takes_strategies_of_every_sharding_in_turn() -> None:
    graph = chain(num_operators=4, sample=N, channel=4)
    problem = problem_of(graph)
    simulator = Simulator(problem)
    plain = data_parallel_toy(graph, N)
    moved = plain.replaced(1, OpConfig((1,) * len(graph.operators[1].factors), (2,)))
    for strategy in (plain, moved, plain):
        for sharding in (*Sharding, *reversed(Sharding)):
            sharded = replace(strategy, sharding=sharding)
            assert simulator.evaluate(sharded) == Simulator(problem).evaluate(sharded)
            assert simulate(problem, sharded, simulator=simulator).strategy.sharding is sharding


def test_the_papers_assumptions_know_no_sharding() -> None:
    graph = chain(num_operators=1)
    problem = replace(problem_of(graph), options=SimulationOptions(paper=True))
    with pytest.raises(SimulationError, match="sharding 'zero1' takes collectives"):
        simulate(problem, replace(on_one_device(graph), sharding=Sharding.ZERO1))


def test_sharded_state_is_not_folded() -> None:
    graph = chain(num_operators=2, sample=8)
    cluster = cluster_from_name("p100-2x4")
    strategy = replace(data_parallel(graph, cluster), sharding=Sharding.ZERO2)
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    found = fold(problem, strategy)
    assert isinstance(found, Refusal)
    assert "zero2" in found.reason


@pytest.mark.parametrize("seed", range(8))
def test_of_any_strategy_each_stage_keeps_no_more_and_moves_what_its_passes_say(seed: int) -> None:
    rng = random.Random(700 + seed)
    problem = random_problem(rng, num_operators=8)
    problem = replace(problem, options=replace(problem.options, paper=False, gradient_compression="none"))
    strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
    found = [simulate(problem, replace(strategy, sharding=sharding)) for sharding in Sharding]
    for less, more in pairwise(found):
        for name in ("parameters_bytes", "gradients_bytes", "optimizer_bytes"):
            assert (getattr(more.memory, name) <= getattr(less.memory, name)).all()
    none, first, second, third = (result.synchronization_bytes for result in found)
    assert none == first == second
    # One half of an all-reduce and one or two gathers; parameters that no gradient is summed of are gathered
    # all the same.
    assert third >= none
    activations = {(result.activation_bytes, result.gradient_bytes) for result in found}
    assert len(activations) == 1


@pytest.mark.parametrize("seed", range(4))
def test_sharding_what_no_two_devices_hold_changes_nothing(seed: int) -> None:
    rng = random.Random(800 + seed)
    problem = random_problem(rng, num_operators=6)
    problem = replace(problem, options=replace(problem.options, paper=False))
    strategy = on_one_device(problem.graph)
    evaluations = {
        Simulator(problem).evaluate(replace(strategy, sharding=sharding)).iteration_time_s
        for sharding in Sharding
    }
    assert len(evaluations) == 1
