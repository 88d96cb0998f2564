"""Gradients that travel in fewer bits: formats, sums, and training with both executors."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.cost.compression import compression_names, find_compression
from soaprl.errors import ProgramError, UnknownNameError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.compression import RowCodec, shortens
from soaprl.runtime.program import CompileOptions, ReduceGradients, Update
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import graph_of_model, initialize
from soaprl.strategy.strategy import Sharding, Strategy
from tests.runtime.executing import execute
from tests.runtime.mutations import places, step_at, with_step
from tests.runtime.processes import run_processes
from tests.runtime.test_training import data_parallel, momentum, trained

FORMATS = [name for name in compression_names() if name != "none"]
# The largest rounding, relative to the largest magnitude of a row.
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 1 / 127, "ternary": 1.0}
NUM_SAMPLES, WIDTH, NUM_STEPS = 12, 5, 4


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


class Layers(nn.Module):
    """Two layers; their parameters do not divide by the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.second(torch.tanh(self.first(x))) - y).square().mean()


def made(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[tuple[Tensor, ...]], OperatorGraph]:
    torch.manual_seed(0)
    module = Layers().to(dtype)
    inputs = [torch.randn(NUM_SAMPLES, WIDTH, dtype=dtype) for _ in range(NUM_STEPS)]
    batches = [(x, x.sum(1, keepdim=True)) for x in inputs]
    return module, batches, graph_of_model(module, batches[0])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", FORMATS)
def test_what_is_decoded_is_within_one_step_of_its_row(how: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    rows = torch.randn(3, 37, dtype=dtype) * torch.tensor([[1e-25], [1.0], [1e30]], dtype=dtype)
    codec = RowCodec(how=how, num_elements=37, dtype=dtype)
    encoded = codec.encode(rows, generator(0))
    # The bits that the simulator counts, and one scale a row, in whole words of eight bytes.
    bits = find_compression(how).bits_of(dtype.itemsize)
    assert encoded.shape == (3, codec.row_bytes)
    assert codec.row_bytes == 8 + 8 * math.ceil(37 * bits / 64)
    error = (codec.decode(encoded) - rows).abs().amax(1) / rows.abs().amax(1)
    assert (error <= ROUNDING[how] * (1 + 1e-6)).all()


@pytest.mark.parametrize("how", ["int8", "ternary"])
def test_integers_are_right_on_average(how: str) -> None:
    torch.manual_seed(2)
    row = torch.randn(1, 24, dtype=torch.float64)
    codec = RowCodec(how=how, num_elements=24, dtype=torch.float64)
    draws = torch.cat([codec.decode(codec.encode(row, generator(k))) for k in range(2000)])
    # A draw is one of two neighbours, so its deviation is at most half a step; five standard errors.
    step = row.abs().max().item() * ROUNDING[how]
    assert (draws.mean(0) - row[0]).abs().max().item() <= 5 * step / 2 / math.sqrt(len(draws))
    assert len(draws.unique(dim=0)) > 1


@pytest.mark.parametrize("how", FORMATS)
def test_zeros_stay_zeros_and_what_is_no_number_spoils_its_row_alone(how: str) -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [1.0, math.inf, 2.0], [1.0, math.nan, 2.0], [1.0, 1.0, -1.0]])
    codec = RowCodec(how=how, num_elements=3, dtype=torch.float32)
    found = codec.decode(codec.encode(rows, generator(0)))
    assert torch.equal(found[0], rows[0])
    assert found[1:3].isnan().all()
    assert torch.equal(found[3], rows[3])


def test_no_format_makes_gradients_longer() -> None:
    assert not shortens("none", torch.float32)
    assert not shortens("fp16", torch.bfloat16)
    assert shortens("int8", torch.bfloat16)


@pytest.mark.parametrize("sharding", list(Sharding))
@pytest.mark.parametrize("how", ["fp16", "bf16"])
def test_sums_of_short_floats_are_nearly_exact(how: str, sharding: Sharding) -> None:
    module, batches, graph = made(torch.float64)
    strategy = replace(data_parallel(graph, 3), sharding=sharding)
    exact, _, _ = execute(graph, strategy, module, batches[0], num_ranks=3)
    options = CompileOptions(compression=how)
    short, _, ranks = execute(graph, strategy, module, batches[0], num_ranks=3, options=options)
    assert torch.equal(short.loss, exact.loss)
    # Each of three ranks and the sum round once; all gradients are in one bucket.
    largest = max(g.abs().max().item() for g in exact.gradients.values())
    for name, gradient in exact.gradients.items():
        difference = (short.gradients[name] - gradient).abs().max().item()
        assert 0 < difference <= 6 * ROUNDING[how] * largest
    if sharding is Sharding.NONE:
        # All ranks have the same sum to the last bit, or their parameters would drift apart.
        for block in ranks.states[0].program.parameters:
            first, *others = (state.gradient(block) for state in ranks.states)
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("how", ["int8", "ternary"])
def test_sums_of_integers_are_right_on_average_and_the_same_on_all_ranks(how: str) -> None:
    module, batches, graph = made(torch.float64)
    strategy, options = data_parallel(graph, 2), CompileOptions(compression=how)
    exact, _, _ = execute(graph, strategy, module, batches[0], num_ranks=2)
    means = {name: torch.zeros_like(gradient) for name, gradient in exact.gradients.items()}
    count = 100
    for seed in range(count):
        found, _, ranks = execute(
            graph, strategy, module, batches[0], num_ranks=2, seed=seed, options=options
        )
        for name, gradient in found.gradients.items():
            means[name] += gradient / count
        for block in ranks.states[0].program.parameters:
            assert torch.equal(ranks.states[0].gradient(block), ranks.states[1].gradient(block))
    # Rows are of at most the largest gradient of a rank; two are added, and their sum is rounded again.
    largest = 4 * max(g.abs().max().item() for g in exact.gradients.values())
    for name, gradient in exact.gradients.items():
        assert (means[name] - gradient).abs().max().item() <= 5 * largest * ROUNDING[how] / math.sqrt(count)


@pytest.mark.parametrize("how", FORMATS)
def test_training_learns_nearly_as_much_as_with_exact_gradients(how: str) -> None:
    module, batches, graph = made()
    batches = batches * 25
    losses, _ = trained(module, batches, sgd)
    runtime = started(module, batches, graph, data_parallel(graph, 2), how)
    found = [runtime.step(*batch).item() for batch in batches]
    begun, ended = losses[0].item(), losses[-1].item()
    assert found[0] == pytest.approx(begun, rel=1e-5)
    assert begun - found[-1] > 0.8 * (begun - ended) > 0


def sgd(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(named, lr=0.02)


def started(
    module: nn.Module, batches: list[Any], graph: OperatorGraph, strategy: Strategy, how: str, **others: Any
) -> Any:
    return initialize(
        module,
        strategy,
        batches[0],
        optimizer=others.pop("optimizer", sgd),
        compression=how,
        graph=graph,
        **others,
    )


CASES = [
    *((how, 2, Sharding.NONE, None) for how in FORMATS),
    ("int8", 3, Sharding.NONE, 0.5),
    ("fp16", 3, Sharding.ZERO1, None),
    ("ternary", 2, Sharding.ZERO2, 0.5),
    ("bf16", 2, Sharding.ZERO3, None),
]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_processes_train_to_the_bit_as_logical_ranks(num_ranks: int) -> None:
    run_processes(compare_executors, num_ranks)


def compare_executors(rank: int) -> None:
    module, batches, graph = made()
    num_ranks = torch.distributed.get_world_size()
    for how, ranks, sharding, clip in CASES:
        if ranks != num_ranks:
            continue
        strategy = replace(data_parallel(graph, ranks), sharding=sharding)
        results = []
        for executor in ("logical", "distributed"):
            runtime = started(
                module,
                batches,
                graph,
                strategy,
                how,
                optimizer=momentum,
                max_gradient_norm=clip,
                executor=executor,
            )
            losses = [runtime.step(*batch).item() for batch in batches]
            results.append((losses, runtime.state_dict()))
        (expected, state), (found, other) = results
        # Losses and norms are sums over processes, whose order is gloo's own.
        assert found == pytest.approx(expected, rel=1e-6), f"{how}, {sharding.value}"
        for name, content in state.items():
            assert torch.allclose(other[name], content, rtol=1e-5, atol=1e-7), f"{how}, {name}"
            if clip is None:
                assert torch.equal(other[name], content), f"{how}, {sharding.value}: {name}"


def test_many_buckets_are_summed_in_two_rounds_each() -> None:
    _, _, graph = made(torch.float64)
    program = compile_program(
        graph, data_parallel(graph, 2), options=CompileOptions(compression="fp16", bucket_bytes=1)
    )
    assert len(places(program, ReduceGradients)) > 2
    run_processes(step_with_small_buckets, 2)


def step_with_small_buckets(rank: int) -> None:
    from soaprl.runtime.distributed import DistributedRank
    from soaprl.runtime.model_state import module_tensors
    from soaprl.runtime.stores import blocks_of
    from tests.runtime.checking import sources

    module, batches, graph = made(torch.float64)
    options = CompileOptions(compression="fp16", bucket_bytes=1, clip_gradients=True)
    strategy = data_parallel(graph, 2)
    expected, program, _ = execute(graph, strategy, module, batches[0], num_ranks=2, options=options)
    content = {**module_tensors(graph, module), **sources(graph, module, batches[0])}
    distributed = DistributedRank(graph, program, blocks_of(graph, content))
    for _ in range(2):
        distributed.iterate(blocks_of(graph, content))
    for block in distributed.state.program.owned:
        name = graph.tensors[block.tensor].name
        found = distributed.state.gradient(block)
        assert torch.equal(found, expected.gradients[name].view(found.shape))


def test_the_checker_refuses_sums_that_are_awaited_before_other_shared_steps() -> None:
    _, _, graph = made()
    options = CompileOptions(compression="fp16", bucket_bytes=1)
    program = compile_program(graph, data_parallel(graph, 2), options=options)
    check_program(program, graph)
    place = places(program, Update)[0]
    update = step_at(program, place)
    assert isinstance(update, Update)
    # The first sum is awaited when the next has not begun.
    first = min(update.waits)
    begun = next(i for i, s in enumerate(program.ranks[0].steps) if getattr(s, "id", -1) == first)
    later = next(
        i for i, s in enumerate(program.ranks[0].steps) if i > begun and s.kind in ("backward", "forward")
    )
    spoiled = with_step(program, (0, later), replace(step_at(program, (0, later)), waits=(first,)))
    rest = tuple(number for number in update.waits if number != first)
    spoiled = with_step(spoiled, place, replace(update, waits=rest))
    with pytest.raises(ProgramError, match="too early"):
        check_program(spoiled, graph)


def test_unknown_formats_are_named() -> None:
    module, batches, graph = made(torch.float64)
    with pytest.raises(UnknownNameError, match="fp8"):
        started(module, batches, graph, data_parallel(graph, 2), "fp8")
