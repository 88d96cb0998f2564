"""Compressed gradients against closed forms."""

from dataclasses import replace

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import cluster_tables
from soaprl.cost.compression import codec_time, compression_names, find_compression
from soaprl.cost.roofline import RooflineCostModel
from soaprl.cost.transfers import all_gather_time, all_reduce_time
from soaprl.errors import SimulationError, UnknownNameError
from soaprl.search.exhaustive.method import search_exhaustive
from soaprl.search.optcnn.method import search_optcnn
from soaprl.simulator import Problem, SimulationOptions, SimulationResult, Simulator, simulate
from soaprl.simulator.folding import FoldedProblem, evaluate_folded, fold
from soaprl.simulator.timeline import TaskKind
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Sharding
from tests.search.synthetic import toy_task
from tests.toys import TableCost, chain, toy_type, uniform_cluster

CHANNEL = 512
LAYER_BYTES = 4 * CHANNEL * CHANNEL
WIRE = {"none": 1, "fp16": 2, "bf16": 2, "int8": 4, "ternary": 16}


def problem_of(name: str) -> Problem:
    return Problem(
        graph=chain(num_operators=3, sample=64, channel=CHANNEL),
        cluster=cluster_from_name("p100-2x4"),
        cost=RooflineCostModel(),
        options=SimulationOptions(gradient_compression=name),
    )


def run(name: str, sharding: Sharding = Sharding.NONE) -> SimulationResult:
    problem = problem_of(name)
    return simulate(problem, replace(data_parallel(problem.graph, problem.cluster), sharding=sharding))


def test_every_compression_is_tested_here() -> None:
    assert set(WIRE) == set(compression_names())


@pytest.mark.parametrize("name", WIRE)
def test_gradients_of_four_bytes_are_sent_as_what_the_format_makes_of_them(name: str) -> None:
    sent = LAYER_BYTES // WIRE[name]
    assert run(name).synchronization_bytes == 3 * 2 * 7 * sent
    # Gathered parameters are not compressed.
    assert run(name, Sharding.ZERO1).synchronization_bytes == 3 * 7 * (sent + LAYER_BYTES)
    # Of three layers the last two are kept between their passes.
    assert run(name, Sharding.ZERO3).synchronization_bytes == 7 * (3 * sent + (3 + 1) * LAYER_BYTES)


@pytest.mark.parametrize("name", WIRE)
@pytest.mark.parametrize("sharding", [Sharding.NONE, Sharding.ZERO2])
def test_a_collective_takes_its_compressed_bytes_and_what_compressing_takes(
    name: str, sharding: Sharding
) -> None:
    result = run(name, sharding)
    tasks, cluster = result.tasks, result.problem.cluster
    time_of = all_reduce_time if sharding is Sharding.NONE else all_gather_time
    sent = LAYER_BYTES // WIRE[name]
    device = cluster.device_types[0]
    rate = device.memory_bandwidth_bytes_per_s * device.memory_efficiency
    codec_s = 0.0 if name == "none" else 2 * (LAYER_BYTES + sent) / rate
    expected_s = time_of(cluster_tables(cluster), range(8), sent).time_s + codec_s
    sums = tasks.kind == TaskKind.SYNCHRONIZATION
    assert sums.sum() == 3
    assert (tasks.finish_s - tasks.start_s)[sums] == pytest.approx([expected_s] * 3, abs=1e-11)


def test_compression_changes_neither_memory_nor_activations() -> None:
    whole, small = run("none"), run("ternary")
    assert small.memory.peak_bytes.tolist() == whole.memory.peak_bytes.tolist()
    assert (small.activation_bytes, small.gradient_bytes) == (whole.activation_bytes, whole.gradient_bytes)


def test_where_links_are_slow_fewer_bits_are_faster() -> None:
    times_s = [run(name).iteration_time_s for name in ("none", "fp16", "int8", "ternary")]
    assert times_s == sorted(times_s, reverse=True)
    assert times_s[-1] < times_s[0]


def test_compression_never_enlarges_an_element() -> None:
    assert find_compression("fp16").bits_of(1) == 8
    assert find_compression("ternary").bits_of(2) == 2
    assert find_compression("none").bits_of(2) == 16
    assert codec_time(8, 8, cluster_from_name("p100-1x1").device_types[0]) == 0.0


def test_an_unknown_compression_and_one_under_the_papers_assumptions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown gradient compression 'fp8'"):
        SimulationOptions(gradient_compression="fp8")
    with pytest.raises(SimulationError, match="gradient compression 'int8' is for collectives"):
        SimulationOptions(gradient_compression="int8", paper=True)
    with pytest.raises(SimulationError, match="expected a prefetch of 1 or more operators, found 0"):
        SimulationOptions(prefetch=0)


def test_folding_compresses_as_full_simulation_does() -> None:
    problem = problem_of("int8")
    strategy = data_parallel(problem.graph, problem.cluster)
    folded = fold(problem, strategy)
    assert isinstance(folded, FoldedProblem)
    whole, few = simulate(problem, strategy), evaluate_folded(folded)
    assert few.iteration_time_s == whole.iteration_time_s
    assert few.communication_bytes == whole.communication_bytes


def test_exact_search_knows_what_compression_saves() -> None:
    """Summing whole gradients would cost more than two devices save; summing compressed ones does not."""
    graph = chain(num_operators=2, sample=4, channel=4)
    device = replace(toy_type(), memory_bandwidth_bytes_per_s=1e6)
    cluster = uniform_cluster(2, bandwidth=0.5, device_types=(device,))
    dense = Problem(graph=graph, cluster=cluster, cost=TableCost())
    problem = replace(dense, options=SimulationOptions(gradient_compression="ternary"))
    strategy, alone = data_parallel(graph, cluster), single_device(graph, cluster)
    assert simulate(dense, strategy).iteration_time_s > simulate(dense, alone).iteration_time_s
    compressed_s = simulate(problem, strategy).iteration_time_s
    assert compressed_s < simulate(problem, alone).iteration_time_s
    proven = search_exhaustive(toy_task(problem, Simulator(problem), evaluations=None))
    assert proven.evaluation.iteration_time_s <= compressed_s
    fast = search_optcnn(toy_task(problem, Simulator(problem), evaluations=None))
    assert proven.evaluation.iteration_time_s <= fast.evaluation.iteration_time_s <= compressed_s
