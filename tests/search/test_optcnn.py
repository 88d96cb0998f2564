import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.cluster.tables import FloatArray
from soaprl.graph.operators import OperatorGraph
from soaprl.search.optcnn.costs import CostTables
from soaprl.search.optcnn.elimination import Scope, add_table, minimize, total
from soaprl.search.optcnn.method import as_strategy, plan_optcnn, search_optcnn
from soaprl.search.optcnn.space import OptcnnSettings, degree_vectors, variables
from soaprl.search.task import ProgressReport
from soaprl.simulator import Problem, SimulationOptions, Simulator
from soaprl.strategy.validation import check_strategy
from tests.search.synthetic import toy_task
from tests.toys import (
    TableCost,
    ToyBuilder,
    chain,
    diamond,
    node_cluster,
    tied,
    toy_type,
    uniform_cluster,
)

Network = tuple[list[int], dict[Scope, FloatArray]]


def random_network(seed: int, edges: list[tuple[int, int]], num_variables: int) -> Network:
    """A random table for every variable and edge; costs are small whole numbers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(1, 4, size=num_variables)]
    tables: dict[Scope, FloatArray] = {}
    for scope in [*((v,) for v in range(num_variables)), *edges]:
        add_table(tables, scope, rng.integers(0, 20, [sizes[v] for v in scope]).astype(float))
    return sizes, tables


def brute_force(sizes: list[int], tables: dict[Scope, FloatArray]) -> float:
    return min(total(tables, values) for values in product(*(range(size) for size in sizes)))


def series_parallel_edges(rng: random.Random, steps: int) -> tuple[list[tuple[int, int]], int]:
    """Edges made from one by putting a variable on an edge, or a second edge beside one."""
    edges, count = [(0, 1)], 2
    for _ in range(steps):
        u, v = rng.choice(edges)
        if rng.random() < 0.6:
            edges.remove((u, v))
            edges += [(u, count), (v, count)]
            count += 1
        else:
            edges.append((u, v))
    return edges, count


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_a_chain_is_eliminated_to_its_minimum(length: int, seed: int) -> None:
    sizes, tables = random_network(seed, [(v, v + 1) for v in range(length - 1)], length)
    found = minimize(sizes, tables)
    assert found.exact
    assert found.largest_core <= 2
    assert found.cost == brute_force(sizes, tables) == total(tables, found.values)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 9), st.integers(0, 10**6))
def test_a_series_parallel_network_is_eliminated_to_its_minimum(steps: int, seed: int) -> None:
    edges, count = series_parallel_edges(random.Random(seed), steps)
    sizes, tables = random_network(seed, edges, count)
    # One cell is always room enough for a point: a table over two variables has at most 9.
    found = minimize(sizes, tables, max_cells=9)
    assert found.exact
    assert found.largest_core <= 2
    assert found.cost == brute_force(sizes, tables)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 6), st.integers(0, 10**6))
def test_a_core_without_easy_variables_is_enumerated_within_the_bound(count: int, seed: int) -> None:
    edges = [(u, v) for u in range(count) for v in range(u)]
    sizes, tables = random_network(seed, edges, count)
    found = minimize(sizes, tables)
    assert found.exact
    assert found.cost == brute_force(sizes, tables)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_beyond_the_bound_no_single_change_improves_and_the_outcome_says_so(seed: int) -> None:
    edges = [(u, v) for u in range(5) for v in range(u)]
    sizes, tables = random_network(seed, edges, 5)
    found = minimize(sizes, tables, max_cells=1)
    assert found.cost == total(tables, found.values) >= brute_force(sizes, tables)
    assert found.exact == (not found.fixed)
    if max(sizes) > 1 and sorted(sizes)[-4] > 1:
        assert not found.exact
    for v, size in enumerate(sizes):
        for value in range(size if found.fixed else 0):
            changed = (*found.values[:v], value, *found.values[v + 1 :])
            assert total(tables, changed) >= found.cost


def test_tables_of_one_scope_are_added_whatever_the_order_of_their_axes() -> None:
    tables: dict[Scope, FloatArray] = {}
    add_table(tables, (0, 1), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    add_table(tables, (1, 0), np.array([[10.0, 40.0], [20.0, 50.0], [30.0, 60.0]]))
    assert list(tables) == [(0, 1)]
    assert tables[0, 1].tolist() == [[11.0, 22.0, 33.0], [44.0, 55.0, 66.0]]


def test_the_space_has_the_products_that_divide_the_devices_and_no_partial_sums() -> None:
    operator = chain(sample=4, channel=3).operators[0]
    # Degrees of (sample, channel, in_channel); 4 devices; channel has extent 3.
    expected = {(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1)}
    assert set(degree_vectors(operator, 4, OptcnnSettings())) == expected
    partial = {(1, 1, 2), (1, 2, 2), (2, 1, 2)}
    assert set(degree_vectors(operator, 4, OptcnnSettings(reductions=True))) == expected | partial


def tables_of(problem: Problem) -> tuple[dict[Scope, FloatArray], list[dict[tuple[int, ...], int]]]:
    choices = variables(problem.graph, problem.cluster.num_devices, OptcnnSettings())
    tables = CostTables(problem, choices).tables(lambda done, of: None)
    return tables, [{degrees: i for i, degrees in enumerate(v.degrees)} for v in choices]


def test_costs_of_a_chain_are_those_computed_by_hand() -> None:
    # Bandwidth 2, latency 1/2; collectives start after 6.6e-6 s.
    cluster = uniform_cluster(2, bandwidth=2.0, latency=0.5)
    cost = TableCost(update_s_per_byte=0.25)
    problem = Problem(graph=chain(num_operators=2, sample=4, channel=4), cluster=cluster, cost=cost)
    tables, at = tables_of(problem)
    whole, by_sample, by_channel = (1, 1, 1), (2, 1, 1), (1, 2, 1)
    # Work 64, forward 1 s and backward 2 s a unit; 64 bytes of weights to update.
    assert tables[0,][at[0][whole]] == 64 * 3 + 16
    # Half of the work; all weights on both devices: two members exchange all 64 bytes in 2 rounds.
    reduced = 6.6e-6 + 2 * 0.5 + 64 / 2.0
    assert tables[0,][at[0][by_sample]] == pytest.approx(32 * 3 + 16 + reduced)
    # Each device has half of the weights.
    assert tables[0,][at[0][by_channel]] == 32 * 3 + 8
    edge = tables[0, 1]
    assert edge[at[0][by_sample], at[1][by_sample]] == 0
    # Both readers want all 64 bytes, of which the other device has half: 32 bytes each way, forward and back.
    assert edge[at[0][by_channel], at[1][by_channel]] == 2 * (0.5 + 32 / 2)
    # Device 0 sends half of what it has.
    assert edge[at[0][whole], at[1][by_sample]] == 2 * (0.5 + 32 / 2)


def test_with_the_papers_assumptions_gradients_go_to_the_first_holder_and_back() -> None:
    problem = Problem(
        graph=chain(num_operators=1, sample=4, channel=4),
        cluster=uniform_cluster(4, bandwidth=2.0, latency=0.5),
        cost=TableCost(),
        options=SimulationOptions(paper=True),
    )
    tables, at = tables_of(problem)
    # 64 bytes over links of their own, 32 s up and 32 s down, without latency.
    assert tables[0,][at[0][4, 1, 1]] == 16 * 3 + 64


def test_the_slowest_part_counts_on_mixed_devices() -> None:
    cluster = uniform_cluster(2, device_types=(toy_type("fast"), toy_type("slow")), types=(0, 1))
    graph = chain(num_operators=1, sample=4, channel=4)
    problem = Problem(graph=graph, cluster=cluster, cost=TableCost(slowness={"slow": 3.0}))
    tables, at = tables_of(problem)
    assert tables[0,][at[0][1, 1, 1]] == 64 * 3
    assert tables[0,][at[0][1, 2, 1]] == 32 * 3 * 3


def test_operators_that_share_a_weight_share_a_configuration() -> None:
    problem = Problem(graph=tied(), cluster=uniform_cluster(4), cost=TableCost())
    tables, _ = tables_of(problem)
    assert list(tables) == [(0,)]
    first, second = plan_optcnn(problem).strategy.configs
    assert first == second


def shared_by_different_operators(count: int) -> OperatorGraph:
    """Linear operators in a row that share one weight, but whose factors have different names."""
    builder = ToyBuilder(sample=4)
    w = builder.parameter("w", 4, 4)
    x = builder.input("x", channel=4)
    for i in range(count):
        x = builder.linear(f"op{i}", x, 4, weight=w)
    graph = builder.build()
    operators = tuple(
        replace(operator, factors=(replace(operator.factors[0], name=f"rows{i}"), *operator.factors[1:]))
        for i, operator in enumerate(graph.operators)
    )
    return replace(graph, operators=operators)


def test_a_weight_of_two_variables_is_synchronized_among_the_holders_of_both() -> None:
    cost = TableCost(update_s_per_byte=0.25)
    problem = Problem(graph=shared_by_different_operators(2), cluster=uniform_cluster(2), cost=cost)
    tables, at = tables_of(problem)
    alone, by_sample, by_channel = (1, 1, 1), (2, 1, 1), (1, 2, 1)
    # All on device 0: nothing moves, 64 bytes are updated. Half of the channels each: 32 bytes.
    assert tables[0, 1][at[0][alone], at[1][alone]] == 16
    both = tables[0, 1][at[0][by_channel], at[1][by_channel]]
    # Activations of 64 bytes: each device lacks half of them, forward and back.
    assert both == 8 + 2 * 32
    # Device 0 has all of the weight, device 1 too: 64 bytes all-reduced; 32 bytes of activations each way.
    mixed = tables[0, 1][at[0][alone], at[1][by_sample]]
    assert mixed == pytest.approx(16 + 6.6e-6 + 64 + 2 * 32)


def test_a_weight_of_three_variables_is_charged_to_each_in_equal_shares() -> None:
    graph = shared_by_different_operators(3)
    cost = TableCost(update_s_per_byte=0.25)
    tables, at = tables_of(Problem(graph=graph, cluster=uniform_cluster(2), cost=cost))
    for v in range(3):
        assert tables[v,][at[v][1, 1, 1]] == pytest.approx(64 * 3 + 16 / 3)
        assert tables[v,][at[v][2, 1, 1]] == pytest.approx(32 * 3 + (16 + 6.6e-6 + 64) / 3)


def random_chain(seed: int) -> OperatorGraph:
    rng = random.Random(seed)
    builder = ToyBuilder(sample=rng.choice([2, 4]))
    x = builder.input("x", channel=rng.choice([2, 4]))
    for i in range(rng.randint(1, 4)):
        kind = rng.choice(["linear", "window", "add"])
        if kind == "linear":
            x = builder.linear(f"op{i}", x, rng.choice([2, 3, 4]))
        elif kind == "window":
            x = builder.window(f"op{i}", x)
        else:
            x = builder.add(f"op{i}", x)
    return builder.build()


def random_series_parallel(seed: int) -> OperatorGraph:
    """Blocks in a row, each an operator or two branches that are added."""
    rng = random.Random(seed)
    builder = ToyBuilder(sample=4)
    x = builder.linear("first", builder.input("x", channel=2), 2)
    for i in range(rng.randint(1, 2)):
        if rng.random() < 0.4:
            x = builder.window(f"window{i}", x)
            continue
        left = builder.linear(f"left{i}", x, 2) if rng.random() < 0.7 else x
        right = builder.window(f"right{i}", x)
        x = builder.add(f"join{i}", left, right)
    return builder.build()


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([random_chain, random_series_parallel]), st.integers(0, 10**6), st.booleans())
def test_the_plan_is_the_cheapest_of_all_strategies_of_the_space(
    make: Callable[[int], OperatorGraph], seed: int, paper: bool
) -> None:
    problem = Problem(
        graph=make(seed),
        cluster=node_cluster(2, 2, latency=0.25),
        cost=TableCost(update_s_per_byte=0.25),
        options=SimulationOptions(paper=paper),
    )
    plan = plan_optcnn(problem)
    choices = variables(problem.graph, 4, OptcnnSettings())
    tables, _ = tables_of(problem)
    combinations = list(product(*(range(len(v.degrees)) for v in choices)))
    cheapest = min(total(tables, values) for values in combinations)
    assert plan.minimum.exact
    assert plan.minimum.largest_core <= 2
    assert plan.minimum.cost == pytest.approx(cheapest, rel=1e-12)
    assert plan.strategy in {as_strategy(choices, values) for values in combinations}
    assert plan.explanation == f"exact: {len(choices)} variables eliminated"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_objective_is_the_simulated_time_where_layers_run_one_after_the_other(seed: int) -> None:
    """Without parameters nothing overlaps, and the best layouts fit each other."""
    rng = random.Random(seed)
    builder = ToyBuilder(sample=4)
    x = builder.input("x", channel=2)
    for i in range(rng.randint(1, 5)):
        x = builder.add(f"op{i}", x)
    problem = Problem(graph=builder.build(), cluster=uniform_cluster(4, latency=0.5), cost=TableCost())
    plan = plan_optcnn(problem)
    assert Simulator(problem).evaluate(plan.strategy).iteration_time_s == plan.minimum.cost


@pytest.mark.parametrize("graph", [diamond(), shared_by_different_operators(3)])
def test_the_method_simulates_once_and_says_whether_it_is_exact(graph: OperatorGraph) -> None:
    problem = Problem(graph=graph, cluster=uniform_cluster(4), cost=TableCost())
    reports: list[ProgressReport] = []
    result = search_optcnn(toy_task(problem, Simulator(problem), progress=reports.append))
    check_strategy(problem.graph, 4, result.strategy)
    assert result.method == "optcnn"
    assert result.num_evaluations == 1
    assert result.strategy == plan_optcnn(problem).strategy
    assert reports[0].stage.startswith("costs 1 of ")
    assert reports[-1].stage.startswith("exact: ")
    assert reports[-1].best_time_s == result.evaluation.iteration_time_s
