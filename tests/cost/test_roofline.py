from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.cluster import DeviceType
from soaprl.cluster.devices import device_type, device_type_names
from soaprl.cost.model import CostModel, Shard, TaskTime
from soaprl.cost.optimizers import optimizer_facts, optimizer_names
from soaprl.cost.roofline import COMPUTE_HALF_S, MEMORY_HALF_S, RooflineCostModel
from soaprl.errors import CostError, UnknownNameError
from soaprl.graph.operators import Operator, OperatorGraph, Term
from tests.toys import ToyBuilder

# A device whose numbers make times easy to write down: 2 TFLOP/s and 100 GB/s of which half is reached.
PLAIN = DeviceType(
    name="plain",
    peak_flops_per_s=(("float32", 2e12), ("float16", 8e12)),
    memory_bytes=10**9,
    memory_bandwidth_bytes_per_s=100e9,
    kernel_launch_s=7e-6,
    matmul_efficiency=0.5,
    memory_efficiency=0.5,
)
EMPTY = Shard(extents=(), input_bytes=(), parameter_bytes=(), output_bytes=())


def linear_graph() -> OperatorGraph:
    """``x -> first -> second``, so that the second's input has a gradient and the first's has none."""
    builder = ToyBuilder(sample=64)
    first = builder.linear("first", builder.input("x", channel=32), 32)
    builder.linear("second", first, 16)
    return builder.build()


def whole_shard(extents: tuple[int, int, int]) -> Shard:
    """The shard of a float32 linear operator: sample, channel, in_channel."""
    sample, channel, in_channel = extents
    return Shard(
        extents=extents,
        input_bytes=(4 * sample * in_channel,),
        parameter_bytes=(4 * channel * in_channel,),
        output_bytes=(4 * sample * channel,),
    )


def linear_time(
    extents: tuple[int, int, int],
    *,
    name: str = "second",
    model: CostModel | None = None,
    kind: DeviceType = PLAIN,
    **changes: object,
) -> TaskTime:
    graph = linear_graph()
    work = (Term(coefficient=2.0, factors=(0, 1, 2)),)
    twice = (Term(coefficient=4.0, factors=(0, 1, 2)),)
    operator: Operator = replace(
        graph.operators[graph.index[name]],
        forward_flops=work,
        backward_flops=twice,
        **changes,  # type: ignore[arg-type]
    )
    return (model or RooflineCostModel()).task_time(graph, operator, whole_shard(extents), kind)


def test_a_large_product_is_limited_by_arithmetic() -> None:
    n = 4096
    time = linear_time((n, n, n))
    # 2 n^3 FLOPs at half of 2 TFLOP/s, one kernel's launch and ramp.
    assert time.forward_s == pytest.approx(7e-6 + 5e-6 + 2 * n**3 / 1e12)
    assert time.backward_s == pytest.approx(7e-6 + 5e-6 + 4 * n**3 / 1e12)
    assert not time.measured


def test_a_thin_product_is_limited_by_memory() -> None:
    time = linear_time((1, 1024, 1024))
    moved = 4 * (1024 + 1024 * 1024 + 1024)
    assert time.forward_s == pytest.approx(7e-6 + 2e-6 + moved / 50e9)
    # The output's gradient, the saved input and the weight are read; both gradients are written.
    backward = 4 * (1024 + 1024 + 1024 * 1024) + 4 * (1024 + 1024 * 1024)
    assert time.backward_s == pytest.approx(7e-6 + 2e-6 + backward / 50e9)


def test_no_gradient_is_written_for_an_input_that_has_none() -> None:
    first, second = (linear_time((1, 1024, 1024), name=name) for name in ("first", "second"))
    assert second.backward_s - first.backward_s == pytest.approx(4 * 1024 / 50e9)
    assert second.forward_s == first.forward_s


def test_internal_traffic_counts_once_forward_and_twice_backward() -> None:
    plain = linear_time((1, 1024, 1024))
    internal = (Term(coefficient=100.0, factors=(1,)),)
    more = linear_time((1, 1024, 1024), internal_bytes=internal)
    assert more.forward_s - plain.forward_s == pytest.approx(100 * 1024 / 50e9)
    assert more.backward_s - plain.backward_s == pytest.approx(2 * 100 * 1024 / 50e9)


def test_what_an_operator_keeps_inside_is_read_backward() -> None:
    plain = linear_time((1, 1024, 1024))
    more = linear_time((1, 1024, 1024), internal_saved_bytes=(Term(coefficient=100.0, factors=(1,)),))
    assert more.forward_s == plain.forward_s
    assert more.backward_s - plain.backward_s == pytest.approx(100 * 1024 / 50e9)


def test_every_kernel_is_launched_and_ramps_up() -> None:
    one = linear_time((1, 1024, 1024))
    three = linear_time((1, 1024, 1024), num_forward_kernels=3)
    assert three.forward_s - one.forward_s == pytest.approx(2 * (7e-6 + MEMORY_HALF_S))


def test_an_operator_without_backward_takes_no_time_there() -> None:
    assert linear_time((64, 64, 64), num_backward_kernels=0).backward_s == 0.0


def test_a_kernel_with_the_work_of_the_ramp_runs_at_half_speed() -> None:
    flops = 1e12 * COMPUTE_HALF_S  # what the device reaches in that time
    graph = linear_graph()
    operator = replace(graph.operators[1], forward_flops=(Term(coefficient=flops, factors=()),))
    shard = replace(EMPTY, extents=(1, 1, 1), input_bytes=(0,), parameter_bytes=(0,), output_bytes=(0,))
    time = RooflineCostModel(paper=True).task_time(graph, operator, shard, PLAIN)
    assert flops / time.forward_s == pytest.approx(0.5 * 1e12)


def test_splitting_64_ways_is_never_64_times_as_quick() -> None:
    whole = linear_time((64, 1024, 1024), kind=device_type("p100"))
    part = linear_time((1, 1024, 1024), kind=device_type("p100"))
    assert part.forward_s < whole.forward_s
    assert 64 * part.forward_s > 8 * whole.forward_s


def test_matrix_units_work_in_the_compute_dtype_and_nothing_else_does() -> None:
    n, half = 4096, RooflineCostModel(compute_dtype="float16")
    ramp_s = 7e-6 + 5e-6
    matrix = linear_time((n, n, n), model=half)
    vector = linear_time((n, n, n), model=half, matmul=False)
    assert matrix.forward_s - ramp_s == pytest.approx(2 * n**3 / 4e12)
    assert vector.forward_s - ramp_s == pytest.approx(2 * n**3 / 1e12)


def test_tf32_means_float32_where_there_is_none() -> None:
    n, tf32 = 4096, RooflineCostModel(compute_dtype="tf32")
    assert linear_time((n, n, n), model=tf32) == linear_time((n, n, n))
    a100 = device_type("a100")
    assert (
        linear_time((n, n, n), model=tf32, kind=a100).forward_s < linear_time((n, n, n), kind=a100).forward_s
    )


def test_a_dtype_that_the_device_lacks_is_an_error() -> None:
    with pytest.raises(
        CostError, match=r"'plain' has no peak FLOP/s for bfloat16\. Choose one of float32, float16"
    ):
        linear_time((64, 64, 64), model=RooflineCostModel(compute_dtype="bfloat16"))


def test_an_unknown_dtype_names_the_closest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown compute dtype 'bf16'.*'bfloat16'"):
        RooflineCostModel(compute_dtype="bf16")


def test_the_paper_has_no_launches() -> None:
    model = RooflineCostModel(paper=True)
    usual, paper = linear_time((64, 64, 64)), linear_time((64, 64, 64), model=model)
    assert usual.forward_s - paper.forward_s == pytest.approx(7e-6)
    assert model.update_time(10**6, PLAIN) == pytest.approx(
        RooflineCostModel().update_time(10**6, PLAIN) - 7e-6
    )


@pytest.mark.parametrize(("name", "moves"), [("sgd", 3), ("momentum", 5), ("adam", 7)])
def test_an_update_moves_parameter_gradient_and_states(name: str, moves: int) -> None:
    model = RooflineCostModel(optimizer=optimizer_facts(name))
    assert model.update_time(10**6, PLAIN) == pytest.approx(7e-6 + 2e-6 + moves * 10**6 / 50e9)
    assert model.update_time(0, PLAIN) == 0.0


@pytest.mark.parametrize(("name", "states"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_optimizers_keep_their_states(name: str, states: int) -> None:
    assert name in optimizer_names()
    assert optimizer_facts(name).num_states == states
    assert optimizer_facts(name).state_bytes(10) == 10 * states


def test_an_unknown_optimizer_names_the_closest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adamm'. Did you mean 'adam'\?"):
        optimizer_facts("adamm")


def test_the_name_tells_settings_apart() -> None:
    models = [
        RooflineCostModel(),
        RooflineCostModel(paper=True),
        RooflineCostModel(compute_dtype="tf32"),
        RooflineCostModel(optimizer=optimizer_facts("sgd")),
    ]
    assert models[0].name == "roofline(float32, adam)"
    assert len({model.name for model in models}) == 4


extents = st.tuples(*[st.integers(1, 4096)] * 3)


@given(
    small=extents, factor=st.integers(1, 8), dim=st.integers(0, 2), name=st.sampled_from(device_type_names())
)
def test_a_larger_shard_never_takes_less_time(
    small: tuple[int, int, int], factor: int, dim: int, name: str
) -> None:
    kind = device_type(name)
    larger = tuple(e * factor if d == dim else e for d, e in enumerate(small))
    a, b = linear_time(small, kind=kind), linear_time((larger[0], larger[1], larger[2]), kind=kind)
    assert a.forward_s <= b.forward_s
    assert a.backward_s <= b.backward_s
    # Cutting never pays more than it saves: the parts together take at least as long as the whole.
    assert factor * a.forward_s >= b.forward_s * (1 - 1e-12)


@given(shape=extents)
def test_a_better_device_is_never_slower(shape: tuple[int, int, int]) -> None:
    order = [device_type(name) for name in ("k80", "p100", "v100", "a100", "h100", "h200", "b200")]
    times = [linear_time(shape, kind=kind).forward_s for kind in order]
    assert times == sorted(times, reverse=True)
