"""Whole traces of small cases, computed by hand.

With `sample=2, channel=1` a linear operator has 2 units of work: 2 s forward, 4 s backward. Its output has 2
elements of 4 bytes, which take 8 s over a link of 1 byte/s.
"""

from dataclasses import replace

import pytest

from soaprl.cluster.cluster import Cluster, Overheads
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator import Problem, SimulationOptions, SimulationResult, simulate
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.toys import (
    TableCost,
    ToyBuilder,
    bus_cluster,
    chain,
    crossing,
    data_parallel_toy,
    diamond,
    on_one_device,
    split,
    tied,
    uniform_cluster,
)

PAPER = SimulationOptions(paper=True)


def placed(graph: OperatorGraph, *devices: int) -> Strategy:
    """Nothing split, operator i on ``devices[i]``."""
    configs = [OpConfig((1,) * len(op.factors), (d,)) for op, d in zip(graph.operators, devices, strict=True)]
    return Strategy(tuple(configs))


def run(
    graph: OperatorGraph,
    cluster: Cluster,
    strategy: Strategy,
    options: SimulationOptions | None = None,
) -> SimulationResult:
    problem = Problem(graph=graph, cluster=cluster, cost=TableCost(), options=options or SimulationOptions())
    return simulate(problem, strategy)


def trace(result: SimulationResult) -> dict[str, tuple[float, float]]:
    """Start and finish by name; updates and joins, which take no time here, left out."""
    tasks, graph = result.tasks, result.problem.graph
    found = {}
    for i in range(tasks.num_tasks):
        name = tasks.name(i, graph).replace("[0]", "")
        if not name.startswith(("update", "join")):
            assert name not in found
            found[name] = (float(tasks.start_s[i]), float(tasks.finish_s[i]))
    return found


def test_chain_on_one_device_runs_forward_and_then_backward() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    result = run(graph, uniform_cluster(1), on_one_device(graph))
    assert trace(result) == {
        "op0": (0, 2),
        "op1": (2, 4),
        "backward op1": (4, 8),
        "backward op0": (8, 12),
    }
    assert result.iteration_time_s == 12
    assert result.throughput_samples_per_s == 2 / 12
    assert result.communication_bytes == 0
    assert result.critical_path_names == ("op0[0]", "op1[0]", "backward op1[0]", "backward op0[0]")


def test_chain_over_two_devices_sends_activation_and_gradient() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    result = run(graph, uniform_cluster(2), placed(graph, 0, 1))
    assert trace(result) == {
        "op0": (0, 2),
        "op0 d0->d1": (2, 10),
        "op1": (10, 12),
        "backward op1": (12, 16),
        "gradient op0 d1->d0": (16, 24),
        "backward op0": (24, 28),
    }
    assert (result.activation_bytes, result.gradient_bytes, result.synchronization_bytes) == (8, 8, 0)
    assert result.device_busy_s.tolist() == [6, 6]
    assert result.device_idle_s.tolist() == [22, 22]
    assert result.link_busy_s.tolist() == [8, 8]
    assert result.link_bytes.tolist() == [8, 8]


def test_latency_delays_a_transfer_but_does_not_occupy_its_link() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    result = run(graph, uniform_cluster(2, latency=3.0), placed(graph, 0, 1))
    assert trace(result)["op0 d0->d1"] == (2, 2 + 3 + 8)
    assert result.link_busy_s.tolist() == [8, 8]


def test_diamond_runs_its_branches_side_by_side() -> None:
    graph = diamond(sample=2, channel=1)
    result = run(graph, uniform_cluster(2), placed(graph, 0, 0, 1, 0))
    assert trace(result) == {
        "top": (0, 2),
        "top d0->d1": (2, 10),
        "left": (2, 4),
        "right": (10, 12),
        "right d1->d0": (12, 20),
        "bottom": (20, 22),
        "backward bottom": (22, 26),
        "gradient right d0->d1": (26, 34),
        "backward right": (34, 38),
        "backward left": (26, 30),
        "gradient top d1->d0": (38, 46),
        "backward top": (46, 50),
    }


def test_messages_take_processor_time_from_both_ends() -> None:
    graph = diamond(sample=2, channel=1)
    # 1 s a message and 0.25 s for each of 8 bytes: 3 s at each end, before and after 8 s on the link.
    overheads = Overheads(message_s=1.0, message_s_per_byte=0.25)
    result = run(graph, replace(uniform_cluster(2), overheads=overheads), placed(graph, 0, 0, 1, 0))
    assert trace(result) == {
        "top": (0, 2),
        "top d0->d1": (5, 16),
        "left": (5, 7),
        "right": (16, 18),
        "right d1->d0": (21, 32),
        "bottom": (32, 34),
        "backward bottom": (34, 38),
        "gradient right d0->d1": (41, 52),
        "backward right": (52, 56),
        "backward left": (41, 45),
        "gradient top d1->d0": (59, 70),
        "backward top": (70, 74),
    }
    assert result.device_message_s.tolist() == [12, 12]
    assert result.device_busy_s.tolist() == [18, 6]


def test_bytes_on_their_way_take_processor_time_that_messages_do_not_wait_for() -> None:
    graph = diamond(sample=2, channel=1)
    # 0.25 s for each of 8 bytes, at each end.
    overheads = Overheads(carry_s_per_byte=0.25)
    result = run(graph, replace(uniform_cluster(2), overheads=overheads), placed(graph, 0, 0, 1, 0))
    assert trace(result) == {
        "top": (0, 2),
        "top d0->d1": (2, 10),
        # The first device carries the message to the second until 4.
        "left": (4, 6),
        "right": (10, 12),
        "right d1->d0": (12, 20),
        "bottom": (20, 22),
        "backward bottom": (22, 26),
        "gradient right d0->d1": (26, 34),
        "backward right": (34, 38),
        "backward left": (28, 32),
        "gradient top d1->d0": (38, 46),
        "backward top": (46, 50),
    }
    assert result.device_message_s.tolist() == [8, 8]


def test_every_pass_and_every_iteration_may_take_longer_than_its_work() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    overheads = Overheads(task_s=1.0, iteration_s=5.0)
    result = run(graph, replace(uniform_cluster(1), overheads=overheads), on_one_device(graph))
    assert trace(result)["backward op0"] == (11, 16)
    assert result.iteration_time_s == 21
    paper = run(graph, replace(uniform_cluster(1), overheads=overheads), on_one_device(graph), PAPER)
    assert paper.iteration_time_s == 12


def test_crossing_transfers_share_a_link_in_order_of_ready_times() -> None:
    graph = crossing(sample=2, channel=1)
    result = run(graph, uniform_cluster(2), placed(graph, 0, 1, 0, 1, 0))
    assert trace(result) == {
        "a0": (0, 2),
        "a0 d0->d1": (2, 10),
        "b0": (0, 2),
        "b0 d1->d0": (2, 10),
        "a1": (10, 12),
        "b1": (10, 12),
        "b1 d1->d0": (12, 20),
        "end": (20, 22),
        "backward end": (22, 26),
        "gradient b1 d0->d1": (26, 34),
        "backward b1": (34, 38),
        "backward a1": (26, 30),
        # Ready at 30, but the link from d0 to d1 is busy until 34.
        "gradient b0 d0->d1": (34, 42),
        "backward b0": (42, 46),
        "gradient a0 d1->d0": (38, 46),
        "backward a0": (46, 50),
    }


def test_transfer_waits_for_a_busy_link() -> None:
    builder = ToyBuilder(sample=1)
    first = builder.linear("first", builder.input("x", channel=2), 2)
    builder.linear("second", first, 2)
    graph = builder.build()
    strategy = Strategy((split(graph, 0, (0,)), split(graph, 1, (1, 2), channel=2)))
    result = run(graph, bus_cluster(3), strategy)
    # Both parts of second read both elements of first: 8 bytes each, over one bus.
    assert trace(result) == {
        "first": (0, 4),
        "first d0->d1": (4, 12),
        "first d0->d2": (12, 20),
        "second": (12, 14),
        "second[1]": (20, 22),
        "backward second": (14, 18),
        "backward second[1]": (22, 26),
        "gradient first d1->d0": (20, 28),
        "gradient first d2->d0": (28, 36),
        "backward first": (36, 44),
    }
    assert result.critical_path_names[:3] == ("first[0]", "first[0] d0->d1", "first[0] d0->d2")
    assert result.link_busy_s.tolist() == [32]


def test_readers_on_one_device_share_a_delivery_and_its_gradient() -> None:
    graph = diamond(sample=2, channel=1)
    result = run(graph, uniform_cluster(2), placed(graph, 0, 1, 1, 1))
    assert trace(result) == {
        "top": (0, 2),
        "top d0->d1": (2, 10),
        "left": (10, 12),
        "right": (12, 14),
        "bottom": (14, 16),
        "backward bottom": (16, 20),
        "backward right": (20, 24),
        "backward left": (24, 28),
        "gradient top d1->d0": (28, 36),
        "backward top": (36, 40),
    }
    assert (result.activation_bytes, result.gradient_bytes) == (8, 8)


def test_reader_of_a_partial_sum_waits_for_every_summand() -> None:
    builder = ToyBuilder(sample=2)
    total = builder.linear("total", builder.input("x", channel=2), 1)
    builder.linear("after", total, 1)
    graph = builder.build()
    strategy = Strategy((split(graph, 0, (0, 1), in_channel=2), split(graph, 1, (0,))))
    assert trace(run(graph, uniform_cluster(2), strategy)) == {
        "total": (0, 2),
        "total[1]": (0, 2),
        "total[1] d1->d0": (2, 10),
        "after": (10, 12),
        "backward after": (12, 16),
        "backward total": (16, 20),
        "gradient total[1] d0->d1": (16, 24),
        "backward total[1]": (24, 28),
    }


def test_halo_is_sent_to_the_neighbour() -> None:
    builder = ToyBuilder(sample=1)
    first = builder.window("first", builder.input("x", channel=4), kernel=1)
    builder.window("second", first, kernel=3)
    graph = builder.build()
    strategy = Strategy(tuple(split(graph, o, (0, 1), channel=2) for o in range(2)))
    result = run(graph, uniform_cluster(2), strategy)
    # Each half needs one element of the other: 4 bytes each way, forward and backward.
    assert (result.activation_bytes, result.gradient_bytes) == (8, 8)
    assert trace(result)["first d0->d1"] == (2, 6)


def test_tied_parameter_is_synchronized_once_over_all_its_readers() -> None:
    graph = tied(sample=2, channel=1)
    result = run(graph, uniform_cluster(2), placed(graph, 0, 1), PAPER)
    found = trace(result)
    assert found["gradient first d1->d0"] == (16, 24)
    assert found["backward first"] == (24, 28)
    # 4 bytes: ready at 16, after the gradient on the same link; the sum is complete at 28.
    assert found["synchronize first d1->d0"] == (24, 28)
    assert found["synchronize first d0->d1"] == (28, 32)
    assert result.iteration_time_s == 32
    assert result.synchronization_bytes == 8
    assert result.memory.parameters_bytes.tolist() == [4, 4]


def test_collective_starts_when_the_last_contribution_is_there() -> None:
    graph = tied(sample=2, channel=1)
    found = trace(run(graph, uniform_cluster(2), placed(graph, 0, 1)))
    assert found["synchronize first"][0] == 28
    # 2 (n - 1) / n * 4 bytes over 1 byte/s, and 6.6 us to start.
    assert found["synchronize first"][1] == pytest.approx(28 + 4 + 6.6e-6, abs=1e-9)


def test_sums_take_processor_time_by_their_bytes_alone() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    messages = Overheads(message_s=1.0, message_s_per_byte=0.25, reduced_s_per_byte=0.5)
    cluster = replace(uniform_cluster(2), overheads=replace(messages, iteration_s=1.0, collective_s=0.0))
    result = run(graph, cluster, data_parallel_toy(graph, 2))
    # Of each of two cells of 4 bytes, 4 go out and 4 come in, for 0.75 s each.
    assert result.device_message_s.tolist() == [12, 12]
    # Backward passes end at 6 and sums at 12, but the devices work on sums until 18, and update then.
    assert trace(result)["backward op0"] == (4, 6)
    assert trace(result)["synchronize op0"] == (8, 12)
    assert result.iteration_time_s == 19


def test_synchronization_overlaps_the_backward_pass() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    result = run(graph, uniform_cluster(2), data_parallel_toy(graph, 2), PAPER)
    assert trace(result) == {
        "op0": (0, 1),
        "op0[1]": (0, 1),
        "op1": (1, 2),
        "op1[1]": (1, 2),
        "backward op1": (2, 4),
        "backward op1[1]": (2, 4),
        "backward op0": (4, 6),
        "backward op0[1]": (4, 6),
        "synchronize op1 d1->d0": (4, 8),
        "synchronize op1 d0->d1": (8, 12),
        "synchronize op0 d1->d0": (8, 12),
        "synchronize op0 d0->d1": (12, 16),
    }
    assert result.iteration_time_s == 16


def test_synchronization_can_wait_for_the_whole_backward_pass() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    options = SimulationOptions(paper=True, overlap_synchronization=False)
    result = run(graph, uniform_cluster(2), data_parallel_toy(graph, 2), options)
    found = trace(result)
    assert found["synchronize op0 d1->d0"] == (6, 10)
    assert found["synchronize op1 d1->d0"] == (10, 14)
    assert found["synchronize op1 d0->d1"] == (14, 18)
    assert result.iteration_time_s == 18


def test_memory_of_a_chain_is_what_the_program_holds_at_its_fullest_step() -> None:
    graph = chain(num_operators=2, sample=2, channel=1)
    memory = run(graph, uniform_cluster(1), on_one_device(graph)).memory
    assert memory.parameters_bytes.tolist() == [8]
    assert memory.gradients_bytes.tolist() == [8]
    assert memory.optimizer_bytes.tolist() == [16]
    # Forward of op1: the input and op0's output, which are saved, and op1's output, 8 bytes each.
    assert memory.activations_bytes.tolist() == [24]
    assert memory.peak_bytes.tolist() == [56]


def test_received_copies_that_nothing_saves_are_communication_buffers() -> None:
    builder = ToyBuilder(sample=2)
    first = builder.add("first", builder.input("x", channel=1))
    builder.add("second", first)
    graph = builder.build()
    memory = run(graph, uniform_cluster(2), placed(graph, 0, 1)).memory
    # On d1: 8 bytes received and 8 bytes of output; no parameters, nothing saved.
    assert memory.communication_bytes.tolist() == [0, 8]
    assert memory.activations_bytes.tolist() == [16, 8]
