import random
from dataclasses import replace
from itertools import permutations, product
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SearchError, UnknownNameError
from soaprl.graph.capture import capture_model
from soaprl.graph.operators import OperatorGraph
from soaprl.search.exhaustive import (
    ExhaustiveOutcome,
    ExhaustiveSettings,
    SpaceSettings,
    full_space,
    prove_optimum,
    search_exhaustive,
)
from soaprl.search.exhaustive.bounds import bounds_within
from soaprl.search.exhaustive.frontier import Frontier, Node
from soaprl.search.exhaustive.scratch import make_scratch
from soaprl.search.exhaustive.space import (
    Space,
    canonical_rows,
    exchangeable_classes,
    make_space,
    with_devices,
)
from soaprl.search.exhaustive.state import pack_nodes, unpack_nodes
from soaprl.search.exhaustive.tables import BoundTables, bound_tables, choosing_order
from soaprl.search.exhaustive.trips import make_trips
from soaprl.search.task import ProgressReport
from soaprl.simulator import Problem, SimulationOptions, Simulator
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.search.interruption import interrupted_at
from tests.search.synthetic import Steps, all_strategies, pointwise_chain, toy_problem, toy_task
from tests.simulator.random_problems import random_graph, random_problem, random_strategy
from tests.toys import (
    TableCost,
    ToyBuilder,
    bus_cluster,
    chain,
    crossing,
    data_parallel_toy,
    node_cluster,
    on_one_device,
    tied,
    toy_type,
    uniform_cluster,
)


def small_problem(seed: int, num_operators: int, num_devices: int = 2) -> Problem:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=num_operators)
    return replace(problem, cluster=uniform_cluster(num_devices, bandwidth=rng.choice([2.0, 64.0])))


def proved(problem: Problem, **changes: object) -> ExhaustiveOutcome:
    chosen = ExhaustiveSettings(**{"space": full_space(), **changes})  # type: ignore[arg-type]
    task = toy_task(problem, Simulator(problem), evaluations=None)
    return prove_optimum(task, chosen)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 10**6]))
def test_the_optimum_of_the_full_space_is_that_of_plain_enumeration(seed: int, max_open: int) -> None:
    problem = small_problem(seed, 1)
    simulator = Simulator(problem)
    times = [simulator.evaluate(s).iteration_time_s for s in all_strategies(problem.graph, 2)]
    outcome = proved(problem, max_open=max_open)
    assert outcome.proof.proved
    assert outcome.proof.num_strategies == len(times)
    assert outcome.result.evaluation.iteration_time_s == pytest.approx(min(times), rel=1e-9)
    assert outcome.proof.lower_bound_s <= min(times) * (1 + 1e-12)


def test_so_is_that_of_operators_in_a_row_and_side_by_side() -> None:
    builder = ToyBuilder(sample=2)
    first = builder.add("first", builder.input("x", channel=2))
    builder.add("join", builder.window("left", first), first)
    problem = Problem(graph=builder.build(), cluster=uniform_cluster(2, bandwidth=16.0), cost=TableCost())
    simulator = Simulator(problem)
    times = [simulator.evaluate(s).iteration_time_s for s in all_strategies(problem.graph, 2)]
    outcome = proved(problem)
    assert outcome.proof.proved
    assert outcome.result.evaluation.iteration_time_s == min(times)
    assert outcome.result.num_evaluations < len(times) / 2


def test_on_three_devices_of_two_types_too() -> None:
    types = (toy_type("fast"), toy_type("slow"))
    cluster = uniform_cluster(3, bandwidth=8.0, device_types=types, types=(1, 0, 0))
    problem = Problem(
        graph=pointwise_chain(num_operators=2, sample=3),
        cluster=cluster,
        cost=TableCost(slowness={"slow": 3.0}),
    )
    simulator = Simulator(problem)
    times = [simulator.evaluate(s).iteration_time_s for s in all_strategies(problem.graph, 3)]
    outcome = proved(problem)
    assert outcome.proof.proved
    assert outcome.result.evaluation.iteration_time_s == min(times)


class Bounds:
    """The lower bounds of a problem and a space, one by one."""

    def __init__(self, problem: Problem, space: Space) -> None:
        self.space = space
        self.tables: BoundTables = bound_tables(problem, space)
        self.trips, self.scratch = make_trips(self.tables), make_scratch(self.tables)

    def of(self, rows: list[int], order: list[int]) -> float:
        """The bound of choosing row ``rows[i]`` of operator ``order[i]``."""
        begin = self.tables.config_begin
        chosen = np.array([row + begin[o] for row, o in zip(rows, order, strict=True)], np.int64)
        whole = np.array([*order, *(set(range(len(self.space.configs))) - set(order))], np.int64)
        bounds = np.zeros(1)
        bounds_within(self.tables, self.trips, self.scratch, whole, chosen[:-1], chosen[-1:], inf, bounds)
        return float(bounds[0])


def space_of(problem: Problem, choice: SpaceSettings) -> Space:
    return make_space(problem.graph, problem.cluster, choice)


def only(strategies: list[Strategy], num_devices: int) -> Space:
    """The space of all combinations of the configurations of these strategies."""
    configs = tuple(tuple(dict.fromkeys(own)) for own in zip(*(s.configs for s in strategies), strict=True))
    degrees = tuple(tuple(dict.fromkeys(config.degrees for config in own)) for own in configs)
    n = len(configs)
    return Space(configs=configs, degrees=degrees, leaders=tuple(range(n)), classes=tuple(range(num_devices)))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_no_bound_exceeds_the_time_of_a_strategy_that_begins_so(
    seed: int, num_operators: int, num_strategies: int, shuffled: bool
) -> None:
    # In a space of few strategies what is not chosen is known well, and bounds are as high as they can be.
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=num_operators)
    devices, n = problem.cluster.num_devices, len(problem.graph.operators)
    strategies = [random_strategy(rng, problem.graph, devices) for _ in range(num_strategies)]
    bounds, simulator = Bounds(problem, only(strategies, devices)), Simulator(problem)
    for strategy in strategies:
        time_s = simulator.evaluate(strategy).iteration_time_s
        rows = [own.index(c) for own, c in zip(bounds.space.configs, strategy.configs, strict=True)]
        order = rng.sample(range(n), n) if shuffled else list(range(n))
        for length in range(1, n + 1):
            bound = bounds.of([rows[o] for o in order[:length]], order[:length])
            assert bound <= time_s * (1 + 1e-12)


def test_the_bound_of_a_whole_strategy_is_its_time_where_nothing_waits_in_vain() -> None:
    graph = chain(num_operators=3)
    problem = Problem(graph=graph, cluster=uniform_cluster(2, latency=0.5), cost=TableCost())
    bounds, simulator = Bounds(problem, space_of(problem, full_space())), Simulator(problem)
    for strategy in (on_one_device(graph), data_parallel_toy(graph, 2)):
        rows = [own.index(c) for own, c in zip(bounds.space.configs, strategy.configs, strict=True)]
        assert bounds.of(rows, [0, 1, 2]) == pytest.approx(simulator.evaluate(strategy).iteration_time_s)


def bound_and_time(
    graph: OperatorGraph, strategy: Strategy, cost: TableCost, *, bandwidth: float
) -> list[float]:
    """The bound of a whole strategy on two devices, and its time."""
    problem = Problem(graph=graph, cluster=uniform_cluster(2, bandwidth=bandwidth), cost=cost)
    n = len(graph.operators)
    bound = Bounds(problem, only([strategy], 2)).of([0] * n, list(range(n)))
    return [bound, Simulator(problem).evaluate(strategy).iteration_time_s]


def test_sums_that_wait_for_a_link_end_before_the_longest_update_of_their_holders() -> None:
    # Two layers on both devices: their sums go over the same links, one after the other, long after the
    # backward pass. Then device 1 updates a third layer besides, which it has for itself.
    builder = ToyBuilder(sample=2)
    y = builder.input("x", channel=4)
    for name in ("one", "two", "three"):
        y = builder.linear(name, y, 4)
    split, whole = OpConfig((2, 1, 1), (0, 1)), OpConfig((1, 1, 1), (1,))
    cost = TableCost(update_s_per_byte=1.0)
    bound, time_s = bound_and_time(builder.build(), Strategy((split, split, whole)), cost, bandwidth=0.1)
    assert bound == pytest.approx(time_s)


@pytest.mark.parametrize(("names", "first"), [(("weighted", "plain"), False), (("plain", "weighted"), True)])
def test_of_two_branches_that_are_ready_at_once_the_later_operator_is_first_in_the_backward_pass(
    names: tuple[str, str], first: bool
) -> None:
    # Both branches are on both devices. The sum of the weight's gradients goes on during the other branch's
    # backward tasks only if those come after; without order, it always could.
    builder = ToyBuilder(sample=2)
    x = builder.input("x", channel=4)
    made = [builder.linear(n, x, 4) if n == "weighted" else builder.window(n, x, kernel=1) for n in names]
    builder.add("join", *made)
    graph = builder.build()
    configs = tuple(OpConfig((2,) + (1,) * (len(o.factors) - 1), (0, 1)) for o in graph.operators)
    cost = TableCost(backward={"plain": 8.0}, update_s_per_byte=0.0)
    bound, time_s = bound_and_time(graph, Strategy(configs), cost, bandwidth=2.0)
    assert bound == pytest.approx(time_s)
    # Joined operator, the two branches forward and backward; the sum of 4 * 4 floats, half of them each way.
    work_s = (1 + 2) * 4 + (1 + 2) * 16 + (1 + 8) * 4
    sum_s = 64.0 / 2.0
    assert time_s == pytest.approx(work_s + (0.0 if first else sum_s))


def test_gradients_go_before_the_sum_that_is_ready_at_the_same_time() -> None:
    # Samples change devices between the layers, so gradients of 4 floats go both ways; then both sums.
    builder = ToyBuilder(sample=2)
    builder.linear("two", builder.linear("one", builder.input("x", channel=4), 4), 4)
    strategy = Strategy((OpConfig((2, 1, 1), (0, 1)), OpConfig((2, 1, 1), (1, 0))))
    bound, time_s = bound_and_time(builder.build(), strategy, TableCost(), bandwidth=0.1)
    assert bound == pytest.approx(time_s)


def test_an_unchosen_reader_counts_with_its_best_configuration() -> None:
    # Two operators of work 64, 3 s a unit. Once the first runs whole on device 0, the second needs at least
    # half of its time (2 devices), or less with transfers of at least half of 64 bytes there and back.
    graph = chain(num_operators=2)
    problem = Problem(graph=graph, cluster=uniform_cluster(2, bandwidth=32.0), cost=TableCost())
    bounds = Bounds(problem, space_of(problem, full_space()))
    row = bounds.space.configs[0].index(OpConfig((1, 1, 1), (0,)))
    assert bounds.of([row], [0]) == 64 * 3 + 32 * 3 + 2 * 32 / 32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(3, 4))
def test_exchangeable_devices_exchange_their_numbers_without_any_change(
    seed: int, num_operators: int, num_devices: int
) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=num_operators)
    types = tuple(rng.choice([0, 1]) for _ in range(num_devices))
    cluster = uniform_cluster(
        num_devices,
        bandwidth=rng.choice([1.0, 3.0, 7.0]),
        latency=rng.choice([0.0, 0.5]),
        device_types=(toy_type("fast"), toy_type("slow")),
        types=types,
    )
    problem = replace(problem, cluster=cluster)
    assert exchangeable_classes(cluster) == types
    simulator = Simulator(problem)
    strategy = random_strategy(rng, problem.graph, num_devices)
    time_s = simulator.evaluate(strategy).iteration_time_s
    for exchange in permutations(range(num_devices)):
        if all(types[d] == types[exchange[d]] for d in range(num_devices)):
            exchanged = Strategy(
                tuple(OpConfig(c.degrees, tuple(exchange[d] for d in c.devices)) for c in strategy.configs)
            )
            assert simulator.evaluate(exchanged).iteration_time_s == time_s


def test_only_devices_with_equal_links_of_their_own_are_exchangeable() -> None:
    assert exchangeable_classes(bus_cluster(3)) == (0, 1, 2)
    assert exchangeable_classes(node_cluster(2, 2)) == (0, 1, 2, 3)
    assert exchangeable_classes(cluster_from_name("p100-1x4")) == (0, 0, 0, 0)
    assert exchangeable_classes(cluster_from_name("k80-1x4")) == (0, 1, 2, 3)
    links = uniform_cluster(3).links
    wider = replace(links[0], bandwidth_bytes_per_s=2.0)
    assert exchangeable_classes(replace(uniform_cluster(3), links=(wider, *links[1:]))) == (0, 1, 2)


@pytest.mark.parametrize("types", [(0, 0, 0), (0, 1, 0)])
def test_exactly_one_of_the_strategies_that_exchanges_make_is_canonical(types: tuple[int, ...]) -> None:
    configs = tuple(OpConfig((k,), devices) for k in (1, 2) for devices in product(range(3), repeat=k))

    def canonical(strategy: tuple[int, int]) -> bool:
        used = 0
        for row in strategy:
            if row not in canonical_rows(configs, types, used).tolist():
                return False
            used = with_devices(used, configs[row])
        return True

    for strategy in product(range(len(configs)), repeat=2):
        orbit = set()
        for exchange in permutations(range(3)):
            if all(types[d] == types[exchange[d]] for d in range(3)):
                moved = [tuple(exchange[d] for d in configs[row].devices) for row in strategy]
                orbit.add(tuple(configs.index(OpConfig((len(m),), m)) for m in moved))
        assert sum(canonical(each) for each in orbit) == 1


def test_structured_placements_of_exchangeable_devices_are_all_orders_and_single_ones() -> None:
    space = make_space(pointwise_chain(sample=4, num_operators=1), uniform_cluster(4), SpaceSettings())
    found: dict[int, set[tuple[int, ...]]] = {}
    for config in space.configs[0]:
        found.setdefault(config.num_tasks, set()).add(config.devices)
    assert found[1] == {(0,), (1,), (2,), (3,)}
    assert found[2] == set(product(range(4), repeat=2))
    assert found[4] == {*permutations(range(4)), *((d,) * 4 for d in range(4))}
    assert set(found) == {1, 2, 4}


def test_drawn_placements_are_blocks_strided_and_single_ones_and_none_is_left_out_for_another() -> None:
    choice = SpaceSettings(placements="drawn")
    space = make_space(pointwise_chain(sample=4, num_operators=1), uniform_cluster(4), choice)
    four = {config.devices for config in space.configs[0] if config.num_tasks == 4}
    blocks = {tuple((start + i) % 4 for i in range(4)) for start in range(4)}
    strided = {tuple((start + i) % 4 for i in (0, 2, 1, 3)) for start in range(4)}
    assert four == blocks | strided | {(d,) * 4 for d in range(4)}
    assert len(canonical_rows(space.configs[0], space.classes, 0)) == len(space.configs[0])


def test_structured_placements_of_other_devices_are_those_that_are_drawn() -> None:
    space = make_space(pointwise_chain(sample=4, num_operators=1), node_cluster(2, 2), SpaceSettings())
    two = {config.devices for config in space.configs[0] if config.num_tasks == 2}
    blocks, strided = {(0, 1), (1, 2), (2, 3), (3, 0)}, {(0, 2), (1, 3), (2, 0), (3, 1)}
    assert two == blocks | strided | {(d, d) for d in range(4)}


def test_lenet_on_two_devices_is_proved_optimal() -> None:
    graph = capture_model("lenet", 128)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
    simulator = Simulator(problem)
    reports: list[ProgressReport] = []
    task = toy_task(problem, simulator, evaluations=None, progress=reports.append)
    outcome = prove_optimum(task)
    assert outcome.proof.proved
    assert outcome.proof.num_open == 0
    assert outcome.proof.num_strategies > 10**9
    assert outcome.proof.num_expanded < 10**3
    assert reports[-1].stage.startswith("proved optimal of ")
    assert simulator.evaluate(outcome.result.strategy) == outcome.result.evaluation
    rng = random.Random(0)
    space = make_space(graph, problem.cluster, SpaceSettings())
    for _ in range(300):
        strategy = Strategy(tuple(rng.choice(configs) for configs in space.configs))
        assert simulator.evaluate(strategy).iteration_time_s >= outcome.proof.lower_bound_s


def test_a_spent_budget_leaves_a_bound_and_what_was_found() -> None:
    problem = small_problem(5, 2)
    best = proved(problem).result.evaluation.iteration_time_s
    task = toy_task(problem, Simulator(problem), evaluations=1)
    outcome = prove_optimum(task, ExhaustiveSettings(space=full_space()))
    assert not outcome.proof.proved
    assert outcome.proof.num_open > 0
    assert outcome.result.num_evaluations == 1
    assert outcome.proof.lower_bound_s <= best <= outcome.result.evaluation.iteration_time_s
    assert 0 <= outcome.proof.gap(outcome.result.evaluation.iteration_time_s) <= 1


class Interrupting:
    """A clock that interrupts a search once, after some readings."""

    def __init__(self, readings: int) -> None:
        self.readings = readings

    def __call__(self) -> float:
        self.readings -= 1
        if self.readings == 0:
            raise KeyboardInterrupt
        return 0.0


@pytest.mark.parametrize("readings", [5, 60, 200, 333])
def test_an_interrupted_search_goes_on_to_the_same_optimum(tmp_path: Path, readings: int) -> None:
    problem = Problem(
        graph=crossing(sample=2, channel=2), cluster=uniform_cluster(2, bandwidth=4.0), cost=TableCost()
    )
    choice = ExhaustiveSettings(space=SpaceSettings(), beam=1)
    path = tmp_path / "state.json"
    task = toy_task(
        problem, Simulator(problem), evaluations=None, state_path=path, clock=Interrupting(readings)
    )
    first = prove_optimum(task, choice)
    assert first.result.interrupted
    again = replace(task, resume=True, clock=Steps())
    outcome = prove_optimum(again, choice)
    whole = prove_optimum(toy_task(problem, Simulator(problem), evaluations=None), choice)
    assert outcome.proof.proved
    time_s = whole.result.evaluation.iteration_time_s
    assert outcome.result.evaluation.iteration_time_s == pytest.approx(time_s, rel=1e-9)
    assert outcome.result.num_evaluations >= first.result.num_evaluations
    with pytest.raises(SearchError, match="reductions was True there, and is False now"):
        prove_optimum(again, ExhaustiveSettings(space=SpaceSettings(reductions=False)))


def test_a_search_that_is_interrupted_anywhere_leaves_nothing_unseen(tmp_path: Path) -> None:
    problem = Problem(
        graph=chain(num_operators=3, sample=2, channel=1), cluster=uniform_cluster(2), cost=TableCost()
    )
    choice, path = ExhaustiveSettings(beam=1), tmp_path / "state.json"
    files = "exhaustive/method.py", "exhaustive/frontier.py"
    task = toy_task(problem, Simulator(problem), evaluations=None, state_path=path)
    whole = prove_optimum(task, choice)
    num_interrupted = 0
    for line in range(100, 2000, 5):
        path.unlink(missing_ok=True)
        try:
            with interrupted_at(line, files):
                stopped = prove_optimum(task, choice)
        except KeyboardInterrupt:
            continue
        if not stopped.result.interrupted:
            break
        num_interrupted += 1
        resumed = prove_optimum(replace(task, resume=True), choice)
        assert resumed.proof.proved
        assert resumed.proof.num_expanded >= whole.proof.num_expanded
        assert resumed.result.evaluation.iteration_time_s == whole.result.evaluation.iteration_time_s
    assert num_interrupted > 150


@pytest.mark.parametrize("content", ["", "[1]", '{"format": "soaprl-exhaustive-state"}'])
def test_a_damaged_state_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    problem = toy_problem(pointwise_chain(), 2)
    with pytest.raises(SearchError, match=r"expected|cannot"):
        prove_optimum(toy_task(problem, Simulator(problem), state_path=path, resume=True))
    missing = toy_task(problem, Simulator(problem), state_path=tmp_path / "no", resume=True)
    with pytest.raises(SearchError, match="cannot read search state"):
        prove_optimum(missing)


def test_nodes_are_packed_and_unpacked() -> None:
    nodes = [Node(1.5, -2, 7, (3, 4)), Node(0.0, 0, 0, ()), Node(1 / 3, -3, 9, (0, 1, 2))]
    assert unpack_nodes(pack_nodes(nodes, 3), 3) == sorted(nodes)


def test_open_nodes_come_lowest_bound_first_until_there_are_too_many() -> None:
    frontier = Frontier(2)
    for number, bound in enumerate([3.0, 1.0, 5.0, 4.0]):
        frontier.push(Node(bound, 0, number, ()))
    assert frontier.bound_s == 1.0
    assert [frontier.pop().bound_s for _ in range(4)] == [4.0, 5.0, 1.0, 3.0]
    assert frontier.bound_s == inf


def test_within_a_tolerance_the_answer_is_that_close() -> None:
    problem = small_problem(11, 2)
    exact = proved(problem).result.evaluation.iteration_time_s
    outcome = proved(problem, tolerance=0.2)
    assert outcome.proof.proved
    assert exact <= outcome.result.evaluation.iteration_time_s <= exact / 0.8
    assert outcome.proof.lower_bound_s <= exact


def test_tied_operators_have_one_configuration() -> None:
    problem = Problem(graph=tied(), cluster=uniform_cluster(2, bandwidth=8.0), cost=TableCost())
    choice = replace(full_space(), tied="parameters")
    outcome = proved(problem, space=choice)
    simulator = Simulator(problem)
    times = [
        simulator.evaluate(s).iteration_time_s
        for s in all_strategies(problem.graph, 2)
        if s.configs[0] == s.configs[1]
    ]
    first, second = outcome.result.strategy.configs
    assert outcome.proof.proved
    assert first == second
    assert outcome.proof.num_strategies == len(times)
    assert outcome.result.evaluation.iteration_time_s == min(times)


def test_of_tied_steps_what_reads_the_same_of_each_is_tied_too() -> None:
    builder = ToyBuilder(sample=4)
    w = builder.parameter("shared.weight", 4, 4)
    one = builder.linear("one", builder.input("x", channel=4), 4, weight=w)
    left, twin = builder.window("left", one), builder.window("twin", one)
    two = builder.linear("two", left, 4, weight=w)
    right = builder.window("right", two)
    builder.add("join", right, twin)
    graph = builder.build()
    leaders = {
        tied: [
            graph.operators[o].name
            for o in make_space(graph, uniform_cluster(2), SpaceSettings(tied=tied)).leaders
        ]
        for tied in ("none", "parameters", "steps")
    }
    assert leaders["none"] == ["one", "left", "twin", "two", "right", "join"]
    assert leaders["parameters"] == ["one", "left", "twin", "one", "right", "join"]
    # "twin" reads what "left" reads, so it is another operator of the same step.
    assert leaders["steps"] == ["one", "left", "twin", "one", "left", "join"]


def test_operators_that_share_parameters_are_chosen_together() -> None:
    builder = ToyBuilder(sample=4)
    w = builder.parameter("shared.weight", 4, 4)
    x = builder.linear("one", builder.input("x", channel=4), 4, weight=w)
    x = builder.linear("other", x, 4)
    builder.linear("two", x, 4, weight=w)
    graph = builder.build()
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
    space = make_space(graph, problem.cluster, SpaceSettings())
    order = choosing_order(bound_tables(problem, space), space.leaders)
    assert [graph.operators[o].name for o in order.tolist()] == ["one", "two", "other"]


def test_light_operators_without_heavy_readers_are_chosen_last() -> None:
    builder = ToyBuilder(sample=4)
    light = builder.add("light", builder.input("x", channel=4))
    heavy = builder.linear("heavy", light, 4)
    between = builder.add("between", heavy)
    end = builder.add("end", builder.linear("second", between, 4), builder.add("early", heavy))
    builder.mean("loss", end)
    cost = TableCost(default_forward=1e-6, default_backward=1e-6, forward={"heavy": 1.0, "second": 1.0})
    graph = builder.build()
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=cost)
    space = make_space(graph, problem.cluster, SpaceSettings())
    order = choosing_order(bound_tables(problem, space), space.leaders)
    names = [graph.operators[o].name for o in order.tolist()]
    assert names == ["heavy", "between", "second", "light", "early", "end", "loss"]


def test_what_cannot_be_listed_is_refused() -> None:
    with pytest.raises(SearchError, match="at most 8 devices, found 9"):
        make_space(pointwise_chain(), uniform_cluster(9), SpaceSettings())
    with pytest.raises(SearchError, match="6 tasks have 262,144 placements on 8 devices"):
        make_space(pointwise_chain(sample=8), uniform_cluster(8), full_space())
    with pytest.raises(UnknownNameError, match="Did you mean 'even'"):
        SpaceSettings(degrees="evn")
    with pytest.raises(UnknownNameError, match="Did you mean 'steps'"):
        SpaceSettings(tied="step")
    with pytest.raises(SearchError, match="tolerance"):
        ExhaustiveSettings(tolerance=0.0)


def test_a_model_that_fits_nowhere_is_said_not_to_fit() -> None:
    graph: OperatorGraph = chain(num_operators=1)
    cluster = uniform_cluster(2, device_types=(toy_type(memory_bytes=1),))
    problem = Problem(graph=graph, cluster=cluster, cost=TableCost())
    result = search_exhaustive(toy_task(problem, Simulator(problem), evaluations=None))
    assert not result.evaluation.feasible


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_options_of_the_simulator_are_respected(paper: bool, overlap: bool) -> None:
    options = SimulationOptions(paper=paper, overlap_synchronization=overlap)
    graph = random_graph(random.Random(4), num_operators=1)
    problem = Problem(
        graph=graph, cluster=uniform_cluster(2, bandwidth=16.0), cost=TableCost(), options=options
    )
    simulator = Simulator(problem)
    times = [simulator.evaluate(s).iteration_time_s for s in all_strategies(graph, 2)]
    assert proved(problem).result.evaluation.iteration_time_s == min(times)
