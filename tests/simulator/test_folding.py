"""Folded simulations against simulations of every device, and what must not be folded."""

import random
from dataclasses import replace

import numpy as np
import pytest

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SimulationError, StrategyError
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator import Problem, SimulationOptions, SimulationResult, Simulator, simulate
from soaprl.simulator.folding import (
    FoldedProblem,
    FoldedResult,
    Refusal,
    SymmetrySimulator,
    evaluate_by_symmetry,
    evaluate_folded,
    fold,
    simulate_by_symmetry,
    simulate_folded,
)
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts_megatron import megatron
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.simulator.random_problems import random_problem, random_strategy
from tests.toys import (
    TableCost,
    ToyBuilder,
    bus_cluster,
    chain,
    node_cluster,
    split,
    toy_type,
    uniform_cluster,
)

MEMORY = (
    "parameters_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "activations_bytes",
    "communication_bytes",
)


def assert_same(folded: FoldedResult, whole: SimulationResult) -> None:
    for name in ("iteration_time_s", "feasible", "peak_memory_bytes", "throughput_samples_per_s"):
        assert getattr(folded, name) == getattr(whole, name), name
    for name in ("activation_bytes", "gradient_bytes", "synchronization_bytes", "communication_bytes"):
        assert getattr(folded, name) == getattr(whole, name), name
    for name in ("device_busy_s", "device_idle_s", "link_busy_s", "link_idle_s", "link_bytes"):
        np.testing.assert_array_equal(getattr(folded, name), getattr(whole, name), name)
    for name in MEMORY:
        np.testing.assert_array_equal(getattr(folded.memory, name), getattr(whole.memory, name), name)


def check(problem: Problem, strategy: Strategy) -> FoldedProblem | Refusal:
    """Compares the folded simulation with that of every device, if there is one."""
    found = fold(problem, strategy)
    assert evaluate_by_symmetry(problem, strategy) == Simulator(problem).evaluate(strategy)
    if isinstance(found, FoldedProblem):
        assert found.folded.cluster.num_devices < problem.cluster.num_devices
        assert_same(simulate_folded(found), simulate(problem, strategy))
    return found


def kept(problem: Problem, strategy: Strategy) -> tuple[int, int]:
    """How many replicas there are, and how many are kept."""
    found = check(problem, strategy)
    assert isinstance(found, FoldedProblem), found
    return found.num_replicas, found.num_kept


def reason(problem: Problem, strategy: Strategy) -> str:
    found = check(problem, strategy)
    assert isinstance(found, Refusal)
    return found.reason


def toy_problem(graph: OperatorGraph, cluster: Cluster, **options: bool) -> Problem:
    cost = TableCost(default_forward=0.25, default_backward=0.5, update_s_per_byte=0.01)
    return Problem(graph=graph, cluster=cluster, cost=cost, options=SimulationOptions(**options))


def random_graph(rng: random.Random, *, sample: int) -> OperatorGraph:
    builder = ToyBuilder(sample=sample)
    channel = rng.choice([2, 4, 5])
    made = [builder.input("x", channel=channel)]
    tied = builder.parameter("tied.weight", channel, channel)
    for i in range(rng.randint(1, 7)):
        x = rng.choice(made[-3:])
        match rng.choice(["linear", "linear", "tied", "add", "window"]):
            case "linear":
                made.append(builder.linear(f"op{i}", x, channel))
            case "tied":
                made.append(builder.linear(f"op{i}", x, channel, weight=tied))
            case "window":
                made.append(builder.window(f"op{i}", x, kernel=rng.choice([1, 2, 3])))
            case "add":
                made.append(builder.add(f"op{i}", x, rng.choice(made[-3:])))
    builder.mean("loss", made[-1], has_backward=rng.random() < 0.8)
    return builder.build()


def random_replicas(rng: random.Random, graph: OperatorGraph, num_groups: int, size: int) -> Strategy:
    """Every operator cut by sample over the groups; in a group cut at random, on places at random."""
    configs = []
    for operator in graph.operators:
        per_group = graph.batch_size // num_groups
        degrees = [rng.randint(1, min(3, f.max_degree)) for f in operator.factors]
        degrees[0] = rng.choice([d for d in (1, 2, 3) if per_group % d == 0])
        places = np.array([rng.randrange(size) for _ in range(int(np.prod(degrees)))]).reshape(degrees)
        devices = np.concatenate([places + size * group for group in range(num_groups)], axis=0)
        configs.append(OpConfig(devices.shape, tuple(devices.ravel().tolist())))
    return Strategy(tuple(configs))


def random_cluster(rng: random.Random, num_groups: int, size: int) -> Cluster:
    latency = rng.choice([0.0, 0.5, 1.0 / 3.0])
    kind = rng.choice(["nodes", "mixed", "k80", "p100", "v100", "h100", "cpu"])
    if kind == "nodes":
        return node_cluster(num_groups, size, bandwidth=rng.choice([3.0, 7.0]), latency=latency)
    if kind == "mixed":
        types = (toy_type("fast"), toy_type("slow", memory_bytes=1 << 12))
        one = tuple(rng.choices([0, 1], k=size))
        return node_cluster(num_groups, size, latency=latency, device_types=types, types=one * num_groups)
    return cluster_from_name(f"{kind}-{num_groups}x{size}")


def test_random_replicas_fold_to_the_same_simulation() -> None:
    rng, folded = random.Random(3), 0
    for _ in range(150):
        num_groups, size = rng.choice([(3, 1), (4, 2), (8, 1), (6, 3), (8, 2), (5, 4), (16, 2)])
        graph = random_graph(rng, sample=num_groups * rng.choice([1, 2, 6]))
        cluster = random_cluster(rng, num_groups, size)
        unit = rng.choice([1.0, 1.0 / 3.0, 1e-5])
        cost = TableCost(
            forward={op.name: rng.choice([0.0, 1.0, 2.0, 5.0]) * unit for op in graph.operators},
            backward={op.name: rng.choice([0.0, 1.0, 3.0]) * unit for op in graph.operators},
            update_s_per_byte=rng.choice([0.0, 0.25]) * unit,
            slowness={"slow": 2.5},
        )
        options = SimulationOptions(
            optimizer=rng.choice(["adam", "sgd"]), overlap_synchronization=rng.random() < 0.6
        )
        problem = Problem(graph=graph, cluster=cluster, cost=cost, options=options)
        found = check(problem, random_replicas(rng, graph, num_groups, size))
        folded += isinstance(found, FoldedProblem)
        assert isinstance(found, FoldedProblem) or "the all-reduces treat each" in found.reason, found
    assert folded > 100


def test_whatever_is_folded_has_the_same_simulation() -> None:
    rng, refused = random.Random(4), 0
    for _ in range(150):
        problem = random_problem(rng, num_operators=rng.randint(1, 5))
        strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
        refused += isinstance(check(problem, strategy), Refusal)
    assert refused > 100


def test_a_replica_that_is_changed_is_not_taken_for_another() -> None:
    rng, refused = random.Random(5), 0
    for _ in range(60):
        num_groups, size = rng.choice([(4, 2), (8, 1), (6, 3)])
        graph = random_graph(rng, sample=num_groups * 2)
        strategy = random_replicas(rng, graph, num_groups, size)
        operator = rng.randrange(len(graph.operators))
        config = strategy.configs[operator]
        devices = list(config.devices)
        devices[rng.randrange(len(devices))] = rng.randrange(num_groups * size)
        changed = strategy.replaced(operator, OpConfig(config.degrees, tuple(devices)))
        refused += isinstance(check(toy_problem(graph, node_cluster(num_groups, size)), changed), Refusal)
    assert refused > 30


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["h100-32x8", "p100-8x8", "k80-16x4", "v100-8x4", "cpu-16x2"])
def test_data_parallelism_folds_to_two_devices(name: str, overlap: bool) -> None:
    cluster = cluster_from_name(name)
    graph = chain(num_operators=5, sample=2 * cluster.num_devices, channel=64)
    problem = Problem(
        graph=graph,
        cluster=cluster,
        cost=RooflineCostModel(),
        options=SimulationOptions(overlap_synchronization=overlap),
    )
    assert kept(problem, data_parallel(graph, cluster)) == (cluster.num_devices, 2)


def test_a_ring_treats_all_groups_alike_and_a_tree_does_not() -> None:
    cluster = cluster_from_name("h100-4x8")
    devices = tuple(range(32))

    def two_ways(channel: int) -> tuple[int, int]:
        graph = chain(num_operators=2, sample=32, channel=channel)
        # The second operator is cut by sample alone, so that all devices hold its weights.
        strategy = Strategy(
            (split(graph, 0, devices, sample=16, channel=2), split(graph, 1, devices, sample=32))
        )
        return kept(Problem(graph=graph, cluster=cluster, cost=RooflineCostModel()), strategy)

    assert two_ways(4096) == (16, 2)  # rings: one class, but two replicas are the fewest
    num_replicas, num_kept = two_ways(8)  # trees: inner devices and leaves
    assert num_replicas == 16
    assert 2 < num_kept < 16


def test_groups_may_be_devices_that_are_equally_spaced() -> None:
    graph = chain(num_operators=3, sample=8, channel=4)
    devices = tuple(group + 4 * place for group in range(4) for place in range(2))
    strategy = Strategy(tuple(split(graph, o, devices, sample=4, channel=2) for o in range(3)))
    # Every pair of devices has a link of its own.
    assert kept(toy_problem(graph, uniform_cluster(8, latency=0.5)), strategy) == (4, 2)


def test_nothing_is_summed_where_nothing_learns() -> None:
    builder = ToyBuilder(sample=8)
    x = builder.input("x", channel=4)
    builder.mean("mean", x, has_backward=False)
    graph = builder.build()
    for paper in (False, True):
        problem = toy_problem(graph, node_cluster(2, 4), paper=paper)
        assert kept(problem, data_parallel(graph, problem.cluster)) == (8, 2)


def symmetric() -> tuple[Problem, Strategy]:
    """Three linear operators on four nodes of two devices: samples over nodes, channels over devices."""
    graph = chain(num_operators=3, sample=8, channel=4)
    strategy = Strategy(tuple(split(graph, o, tuple(range(8)), sample=4, channel=2) for o in range(3)))
    return toy_problem(graph, node_cluster(4, 2)), strategy


def test_the_symmetric_case_folds() -> None:
    assert kept(*symmetric()) == (4, 2)


def test_the_paper_sends_gradients_to_one_device() -> None:
    problem, strategy = symmetric()
    paper = replace(problem, options=SimulationOptions(paper=True))
    assert "gradients are sent to one device" in reason(paper, strategy)


def test_an_operator_on_one_device_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    moved = strategy.replaced(1, split(problem.graph, 1, (3,)))
    assert reason(problem, moved) == "operator 'op1' runs on one group of devices alone"


def test_an_operator_with_parts_in_another_order_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    moved = strategy.replaced(2, split(problem.graph, 2, (2, 3, 0, 1, 4, 5, 6, 7), sample=4, channel=2))
    assert "operator 'op2' is not divided over the 4 groups of 2 devices" in reason(problem, moved)


def test_places_that_differ_between_groups_break_symmetry() -> None:
    problem, strategy = symmetric()
    moved = strategy.replaced(2, split(problem.graph, 2, (0, 1, 2, 3, 5, 4, 6, 7), sample=4, channel=2))
    assert "operator 'op2' does not run on the same places of all 4 groups" in reason(problem, moved)


def test_parts_of_unequal_size_break_symmetry() -> None:
    graph = chain(num_operators=2, sample=9, channel=4)
    strategy = Strategy(tuple(split(graph, o, tuple(range(4)), sample=4) for o in range(2)))
    found = reason(toy_problem(graph, node_cluster(2, 2)), strategy)
    assert found == (
        "operator 'op0' cuts the 9 indices of its factor 'sample' into 4 parts that are not all of one size"
    )


def test_reading_what_another_group_wrote_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    across = OpConfig((2, 4, 1), (0, 2, 4, 6, 1, 3, 5, 7))  # channels over nodes, samples over devices
    found = reason(problem, strategy.replaced(2, across))
    assert found == "operator 'op2' reads from 'op1' across groups of devices"
    builder = ToyBuilder(sample=8)
    x = builder.linear("wide", builder.input("x", channel=8), 8)
    builder.add("sum", x, x)
    graph = builder.build()
    crossing = Strategy(
        (split(graph, 0, tuple(range(4)), sample=4), split(graph, 1, tuple(range(4)), channel=4))
    )
    assert reason(toy_problem(graph, node_cluster(4, 1)), crossing) == (
        "operator 'sum' reads from 'wide' across groups of devices"
    )


def test_a_parameter_that_is_divided_over_groups_breaks_symmetry() -> None:
    builder = ToyBuilder(sample=8)
    builder.linear("only", builder.input("x", channel=8), 8)
    graph = builder.build()
    strategy = Strategy((split(graph, 0, tuple(range(4)), channel=4),))
    assert reason(toy_problem(graph, node_cluster(4, 1)), strategy) == (
        "operator 'only' divides a parameter over groups of devices, along 'channel'"
    )


def test_a_slow_device_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    types = (toy_type("fast"), toy_type("slow"))
    cluster = node_cluster(4, 2, device_types=types, types=(0, 0, 0, 0, 0, 1, 0, 0))
    cost = TableCost(slowness={"slow": 2.0})
    assert "devices of different types" in reason(replace(problem, cluster=cluster, cost=cost), strategy)


def test_a_slow_link_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    links = list(problem.cluster.links)
    links[3] = replace(links[3], bandwidth_bytes_per_s=1.0)
    cluster = replace(problem.cluster, links=tuple(links))
    assert "links of different speeds" in reason(replace(problem, cluster=cluster), strategy)


def test_a_slow_network_link_of_one_node_is_seen() -> None:
    problem, strategy = symmetric()
    links = list(problem.cluster.links)
    links[-1] = replace(links[-1], bandwidth_bytes_per_s=0.25)
    # Only all-reduces use the network, and all wait for its slowest link.
    slow = replace(problem, cluster=replace(problem.cluster, links=tuple(links)))
    assert kept(slow, strategy) == (4, 2)
    assert evaluate_by_symmetry(slow, strategy) != evaluate_by_symmetry(problem, strategy)


def test_a_link_that_groups_share_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    assert "share links" in reason(replace(problem, cluster=bus_cluster(8)), strategy)


def test_another_wiring_breaks_symmetry() -> None:
    problem, strategy = symmetric()
    rows = [list(row) for row in problem.cluster.routes]
    rows[4][5] = rows[4][2] + rows[2][5]
    cluster = replace(problem.cluster, routes=tuple(tuple(row) for row in rows))
    assert "wired differently" in reason(replace(problem, cluster=cluster), strategy)


def test_two_replicas_are_both_simulated() -> None:
    graph = chain(num_operators=2, sample=4, channel=4)
    strategy = Strategy(tuple(split(graph, o, tuple(range(4)), sample=2, channel=2) for o in range(2)))
    found = reason(toy_problem(graph, node_cluster(2, 2)), strategy)
    assert found == "there are 2 groups of 2 devices that do the same, and two are simulated at least"


def test_a_strategy_that_does_not_fit_is_refused() -> None:
    problem, strategy = symmetric()
    for wrong in (
        Strategy(strategy.configs[:2]),
        strategy.replaced(0, OpConfig((4, 2, 1), (*range(7), 8))),
        strategy.replaced(0, OpConfig((4, 2, 1), tuple(range(7)))),
        strategy.replaced(0, OpConfig((16, 1, 1), tuple(range(16)))),
        strategy.replaced(0, OpConfig((8, 1), tuple(range(8)))),
        strategy.replaced(0, OpConfig((0, 1, 1), ())),
    ):
        with pytest.raises(StrategyError):
            fold(problem, wrong)


def test_thousands_of_devices_are_simulated_or_refused_with_the_reason() -> None:
    cluster = cluster_from_name("h100-512x8")
    graph = chain(num_operators=4, sample=8192, channel=256)
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    strategy = data_parallel(graph, cluster)
    evaluation = evaluate_by_symmetry(problem, strategy)
    result = simulate_by_symmetry(problem, strategy)
    assert isinstance(result, FoldedResult)
    assert result.iteration_time_s == evaluation.iteration_time_s
    assert result.communication_bytes == evaluation.communication_bytes
    # Four cells of 256 x 256 floats, summed over all devices; nothing else is sent.
    assert result.communication_bytes == 4 * 2 * 4095 * 256 * 256 * 4
    assert len(result.device_busy_s) == 4096
    moved = strategy.replaced(2, OpConfig((1, 1, 1), (7,)))
    for run in (evaluate_by_symmetry, simulate_by_symmetry):
        with pytest.raises(SimulationError, match=r"4096 devices.*'op2' runs on one group of devices alone"):
            run(problem, moved)


def test_costs_are_asked_for_with_the_whole_graph() -> None:
    problem, strategy = symmetric()

    class Watching(TableCost):
        def task_time(self, graph, operator, shard, device_type):
            assert graph is problem.graph
            assert operator is graph.operators[graph.index[operator.name]]
            return TableCost().task_time(graph, operator, shard, device_type)

    found = fold(replace(problem, cost=Watching()), strategy)
    assert isinstance(found, FoldedProblem)
    assert evaluate_folded(found) == Simulator(replace(problem, cost=TableCost())).evaluate(strategy)


@pytest.fixture(scope="module")
def small_gpt2() -> OperatorGraph:
    from soaprl.graph.capture import capture_model

    # Five heads are no multiple of any tensor degree.
    sizes = {"num_layers": 2, "width": 80, "num_heads": 5, "vocabulary": 97, "sequence": 16}
    return capture_model("gpt2", 64, options=sizes)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("name", "tensor", "replicas"),
    [
        ("h100-8x8", 1, 64),
        ("h100-8x8", 2, 32),
        ("h100-8x8", 4, 16),
        ("h100-16x4", 4, 16),
        ("p100-8x4", 4, 8),
        ("k80-8x2", 2, 8),
    ],
)
def test_a_transformer_with_data_and_tensor_parallelism_folds(
    small_gpt2: OperatorGraph, name: str, tensor: int, replicas: int, overlap: bool
) -> None:
    cluster = cluster_from_name(name)
    strategy = megatron(small_gpt2, cluster, tensor_degree=tensor)
    assert isinstance(strategy, Strategy)
    problem = Problem(
        graph=small_gpt2,
        cluster=cluster,
        cost=RooflineCostModel(),
        options=SimulationOptions(overlap_synchronization=overlap),
    )
    num_replicas, num_kept = kept(problem, strategy)
    assert num_replicas == replicas
    assert num_kept <= replicas // 2


def test_a_convolutional_network_folds() -> None:
    from soaprl.graph.capture import capture_model

    cluster = cluster_from_name("p100-4x4")
    graph = capture_model("lenet", 64)
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    assert kept(problem, data_parallel(graph, cluster)) == (16, 2)


def test_a_search_that_leaves_symmetry_goes_on_with_every_device() -> None:
    problem, strategy = symmetric()
    moved = strategy.replaced(1, split(problem.graph, 1, (3,)))
    by_symmetry, whole = SymmetrySimulator(problem), Simulator(problem)
    # What is folded is simulated to its end, whatever the limit.
    assert by_symmetry.evaluate_within(strategy, 0.0) == whole.evaluate(strategy)
    for one in (strategy, moved, strategy):
        assert by_symmetry.evaluate(one) == whole.evaluate(one)
    assert by_symmetry.evaluate_within(moved, 0.0) is None
