"""Sharded state: training is that of one process, and each rank keeps its part and no more."""

import random
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from soaprl.errors import ExecutionError
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.cells import Cell
from soaprl.runtime.check import check_program
from soaprl.runtime.checkpoint import load_checkpoint, read_state_dict, save_checkpoint
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import initialize_distributed
from soaprl.runtime.distributed.buffers import in_a_row
from soaprl.runtime.gathers import pace
from soaprl.runtime.micro_batches import unrolled
from soaprl.runtime.program import (
    Backward,
    Block,
    CompileOptions,
    Forward,
    GatherParameters,
    Program,
    ReleaseParameters,
    ScatterGradients,
)
from soaprl.runtime.program_text import program_text
from soaprl.runtime.sharding import cell_parts, in_order
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize
from soaprl.simulator.micro_batches import program_order
from soaprl.simulator.order import plain_order
from soaprl.simulator.pacing import BACK_PACE, FORWARD_PACE, pace_groups
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding, Strategy
from tests.runtime.checking import Case
from tests.runtime.executing import random_strategy
from tests.runtime.processes import run_processes
from tests.runtime.test_micro_batches import Layers, pipeline, stages_of
from tests.runtime.test_precision import autocast_losses, stack
from tests.runtime.test_semantics import Words, split_by
from tests.runtime.test_training import NUM_STEPS, adam, data_parallel, model_parallel, momentum, trained

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
SHARDED = tuple(Sharding)[1:]

pytestmark = pytest.mark.usefixtures("double")


class Perceptron(nn.Module):
    """Layers whose widths three ranks cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).square().mean() * self.scale


def sgd(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(named, lr=0.05)


def decayed(named: Any) -> torch.optim.Optimizer:
    """Matrices decay and vectors do not: parts of matrices must still be matrices."""
    pairs = list(named)
    groups = [[p for p in pairs if p[1].dim() > 1], [p for p in pairs if p[1].dim() <= 1]]
    decays = zip(groups, (0.3, 0.0), strict=True)
    return torch.optim.AdamW([{"params": g, "weight_decay": d} for g, d in decays if g], lr=0.1)


def runtime_of(
    module: nn.Module, batch: tuple[Tensor, ...], strategy: Strategy, graph: OperatorGraph, **options: Any
) -> LogicalRuntime:
    return initialize(module, strategy, batch, graph=graph, **{"optimizer": adam, **options})


def agree(runtime: Any, data: list, expected: tuple[list[Tensor], dict[str, Tensor]], what: str) -> None:
    losses = [runtime.step(*batch) for batch in data]
    assert torch.allclose(torch.stack(losses), torch.stack(expected[0]), **CLOSE), what
    for name, content in runtime.state_dict().items():
        assert torch.allclose(content.double(), expected[1][name].double(), **CLOSE), f"{what}: {name}"


def word_batches() -> list[tuple[Tensor, ...]]:
    return [(torch.randint(0, 7, (4, 5)),) for _ in range(NUM_STEPS)]


@pytest.mark.parametrize("sharding", SHARDED)
@pytest.mark.parametrize("make", [sgd, momentum, adam, decayed])
def test_tied_unread_and_unused_parameters_are_trained_in_parts_as_in_one_process(
    make: Any, sharding: Sharding
) -> None:
    module, data = Words(), word_batches()
    graph = graph_of_model(module, data[0])
    expected = trained(module, data, make, clip=0.5)
    for what, strategy in (
        ("samples", data_parallel(graph, 3)),
        ("operators", model_parallel(graph, 3)),
        ("vocabulary", split_by(graph, "vocabulary", 3)),
        ("channels", split_by(graph, "channel", 3)),
    ):
        runtime = runtime_of(
            module,
            data[0],
            replace(strategy, sharding=sharding),
            graph,
            optimizer=make,
            max_gradient_norm=0.5,
        )
        agree(runtime, data, expected, what)


@pytest.mark.parametrize("sharding", SHARDED)
def test_any_configurations_train_in_parts_as_in_one_process(sharding: Sharding) -> None:
    module, data = Words(), word_batches()
    graph = graph_of_model(module, data[0])
    expected = trained(module, data, adam)
    rng, case = random.Random(3), Case(name="", factory=lambda b: (module, data[0]))
    for number in range(10):
        strategy = replace(random_strategy(graph, 5, rng, case), sharding=sharding)
        agree(runtime_of(module, data[0], strategy, graph), data, expected, f"strategy {number}: {strategy}")


@pytest.mark.parametrize("sharding", SHARDED)
def test_micro_batches_train_in_parts_as_the_whole_batch(sharding: Sharding) -> None:
    module, batch = Layers(), torch.randn(12, 6)
    graph = graph_of_model(module, (batch,))
    expected = trained(module, [(batch,)] * NUM_STEPS, adam)
    rng, part = random.Random(1), micro_batch(graph, 3)
    case = Case(name="", factory=lambda b: (module, (batch,)))
    strategies = [
        replace(data_parallel(graph, 3), micro_batches=2),
        replace(data_parallel(graph, 2), micro_batches=3, schedule=Schedule.ONE_F_ONE_B),
        pipeline(graph, 2, 3, Schedule.GPIPE),
    ]
    for schedule in Schedule:
        stages = () if schedule is Schedule.NONE else stages_of(graph, 2)
        anywhere = random_strategy(part, 4, rng, case)
        strategies.append(replace(anywhere, micro_batches=3, schedule=schedule, stages=stages))
    for strategy in strategies:
        runtime = runtime_of(module, (batch,), replace(strategy, sharding=sharding), graph)
        agree(runtime, [(batch,)] * NUM_STEPS, expected, str(strategy))
        whole = {id(p) for state in runtime.ranks.states for p in state.kept.values()}
        for state in runtime.ranks.states:
            others = (p for p in state.parameters.values() if id(p) not in whole)
            assert all(p.untyped_storage().nbytes() == 0 for p in others)


@pytest.mark.parametrize("sharding", SHARDED)
def test_tied_parameters_of_several_stages_add_up_over_micro_batches(sharding: Sharding) -> None:
    """The table is read in the first and in the last stage, whose passes of micro-batches interleave."""
    module, data = Words(), word_batches()
    graph = graph_of_model(module, data[0])
    expected = trained(module, data, momentum)
    for count in (2, 4):
        strategy = pipeline(graph, 2, count, Schedule.ONE_F_ONE_B)
        split = data_parallel(micro_batch(graph, count), 2).configs
        both = replace(strategy, configs=split, sharding=sharding)
        agree(runtime_of(module, data[0], both, graph, optimizer=momentum), data, expected, str(count))
        runtime = runtime_of(module, data[0], replace(strategy, sharding=sharding), graph, optimizer=momentum)
        agree(runtime, data, expected, f"{count}, a stage on each rank")


@pytest.mark.parametrize("sharding", SHARDED)
def test_parts_in_bfloat16_arithmetic_are_what_the_whole_is(sharding: Sharding) -> None:
    torch.set_default_dtype(torch.float32)
    module, batch = stack()
    graph = graph_of_model(module, batch)
    strategy = replace(data_parallel(graph, 4), sharding=sharding)
    runtime = runtime_of(module, batch, strategy, graph, optimizer=momentum, precision="bfloat16")
    expected = autocast_losses(module, batch, enabled=True)
    assert [runtime.step(*batch).item() for _ in expected] == pytest.approx(expected, rel=2**-7)


def part_elements(extents: tuple[int, ...], dim: int, n: int, k: int) -> int:
    """Closed form: n parts along one dimension, the first of which have one index more."""
    return prod(extents) // extents[dim] * (extents[dim] // n + (k < extents[dim] % n))


@pytest.mark.parametrize("sharding", SHARDED)
def test_each_rank_has_optimizer_state_for_its_parts_alone(sharding: Sharding) -> None:
    module, batch, n = Perceptron(), (torch.randn(6, 6),), 3
    graph = graph_of_model(module, batch)
    runtime = runtime_of(module, batch, replace(data_parallel(graph, n), sharding=sharding), graph)
    runtime.step(*batch)
    for rank, optimizer in enumerate(runtime._optimizers):
        # 7 x 6 is cut along the 6, 2 x 7 along the 7, and the first rank has the scalar. The loss is the
        # second's square times the scalar, which one task computes.
        wanted = part_elements((7, 6), 1, n, rank) + part_elements((7,), 0, n, rank)
        wanted += part_elements((2, 7), 1, n, rank) + part_elements((2,), 0, n, rank) + (rank == 0)
        states = list(optimizer.optimizer.state.values()) if optimizer.optimizer else []
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        assert sum(m.numel() * m.itemsize for m in moments) == 2 * 8 * wanted
        assert all(m.untyped_storage().nbytes() == m.numel() * m.itemsize for m in moments)


def test_sharded_gradients_are_given_up_once_they_are_scattered() -> None:
    module, batch = Perceptron(), (torch.randn(6, 6),)
    graph = graph_of_model(module, batch)
    for sharding in SHARDED:
        runtime = runtime_of(module, batch, replace(data_parallel(graph, 3), sharding=sharding), graph)
        runtime.step(*batch)
        for state in runtime.ranks.states:
            whole = {id(p) for b, p in state.parameters.items() if b in state.updated}
            assert all(p.grad is None for p in state.parameters.values() if id(p) not in whole)


def test_sharded_parameters_have_no_memory_between_iterations_but_for_parts() -> None:
    module, batch, n = Perceptron(), (torch.randn(6, 6),), 3
    graph = graph_of_model(module, batch)
    strategy = replace(data_parallel(graph, n), sharding=Sharding.ZERO3)
    runtime = runtime_of(module, batch, strategy, graph)
    for _ in range(2):
        for rank, state in enumerate(runtime.ranks.states):
            kept = {id(p) for p in state.kept.values()}
            others = [p for p in state.parameters.values() if id(p) not in kept]
            assert len(others) >= 4
            assert all(p.untyped_storage().nbytes() == 0 for p in others)
            wanted = part_elements((7, 6), 1, n, rank) + part_elements((7,), 0, n, rank)
            wanted += part_elements((2, 7), 1, n, rank) + part_elements((2,), 0, n, rank) + (rank == 0)
            assert sum(p.numel() for p in state.kept.values()) == wanted
        runtime.step(*batch)


@pytest.mark.parametrize(
    ("extents", "num_ranks", "dim"), [((8, 512), 4, 0), ((10, 512), 4, 1), ((3, 12, 64), 4, 1), ((3,), 4, 0)]
)
def test_cells_are_cut_where_the_largest_part_is_smallest(
    extents: tuple[int, ...], num_ranks: int, dim: int
) -> None:
    # A cell that does not begin at 0.
    box = tuple((5, 5 + extent) for extent in extents)
    cell = Cell(block=Block(tensor=0, box=box), holders=tuple(range(num_ranks)), completed_by=0)
    parts = cell_parts(cell)
    sizes = [0 if part is None else prod(hi - lo for lo, hi in part.box) for part in parts]
    assert sizes == [part_elements(extents, dim, num_ranks, k) for k in range(num_ranks)]
    edges = [part.box[dim] for part in parts if part is not None]
    assert [lo for lo, _ in edges] == [5, *(hi for _, hi in edges[:-1])]
    assert edges[-1][1] == box[dim][1]


def program_of(sharding: Sharding, num_ranks: int = 4) -> tuple[OperatorGraph, Program]:
    module, batch = Layers(), torch.randn(8, 6)
    graph = graph_of_model(module, (batch,))
    strategy = replace(data_parallel(graph, num_ranks), sharding=sharding)
    return graph, compile_program(graph, strategy, options=CompileOptions(prefetch=2))


def test_half_of_a_sum_each_is_scattered_and_gathered_and_parameters_are_gathered_twice() -> None:
    # Six layers, of which the last stays from its forward to its backward pass.
    layer, num_layers = 8 * (6 * 6 + 6), 6
    size, again = num_layers * layer, (num_layers - 1) * layer
    for sharding, wanted in ((Sharding.ZERO1, size), (Sharding.ZERO2, size), (Sharding.ZERO3, size + again)):
        graph, program = program_of(sharding)
        for rank in program.ranks:
            scattered = [s.num_bytes for s in rank.steps if isinstance(s, ScatterGradients)]
            gathered = [s.num_bytes for s in rank.steps if isinstance(s, GatherParameters)]
            assert (sum(scattered), sum(gathered)) == (size, wanted)
        text = program_text(program, graph)
        assert "reduce and scatter gradients over 0-3" in text
        assert "gather parameters over 0-3" in text
        assert ("release layers.0.weight" in text) is (sharding is Sharding.ZERO3)


def test_parameters_are_gathered_as_far_ahead_as_the_simulator_has_it() -> None:
    graph, program = program_of(Sharding.ZERO3)
    n = len(graph.operators)
    passed, gathered = -1, {}
    for step in program.ranks[1].steps:
        if isinstance(step, Forward | Backward):
            passed = step.operator if isinstance(step, Forward) else n + step.operator
        if isinstance(step, GatherParameters):
            for part in step.parts[1]:
                gathered.setdefault(part.tensor, []).append(passed)
    readers = {t: [o for o, _ in uses] for t, uses in graph.consumers.items() if t in gathered}
    has_backward = np.array([int(o.has_backward) for o in graph.operators])
    rows, _ = pace_groups(list(readers.values()), has_backward, 2, plain_order(n))
    assert len(gathered) == 12
    for tensor, row in zip(readers, rows, strict=True):
        kept = row[BACK_PACE] < 0
        wanted = [row[FORWARD_PACE]] if kept else [row[FORWARD_PACE], row[BACK_PACE]]
        assert gathered[tensor] == wanted, graph.tensors[tensor].name


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B])
def test_parameters_are_gathered_for_each_micro_batch_as_the_simulator_has_it(schedule: Schedule) -> None:
    module, batch = Layers(), torch.randn(12, 6)
    graph = graph_of_model(module, (batch,))
    work = unrolled(graph, pipeline(graph, 3, 4, schedule))
    n, each = len(work.graph.operators), len(graph.operators)
    readers = {
        (t, k): [o for o, _ in uses if o // each == k]
        for t, uses in work.graph.consumers.items()
        for k in range(4)
        if work.graph.tensors[t].role is TensorRole.PARAMETER
    }
    trained_here = [operator.has_backward for operator in work.graph.operators]
    found = pace(readers, trained_here, 2, work.order, work.stages)
    order = program_order(work.graph, (schedule, stages_of(graph, 3)), 4)
    assert order is not None
    rows, _ = pace_groups(list(readers.values()), np.array(trained_here, np.int64), 2, order)
    for group, row in zip(readers, rows, strict=True):
        after = [passed for passed, groups in found.gathered.items() for g in groups if g == group]
        numbers = [-1 if p is None else p[1] + n * (p[0] == "backward") for p in after]
        kept = row[BACK_PACE] < 0
        assert sorted(numbers) == sorted([row[FORWARD_PACE], *([] if kept else [row[BACK_PACE]])]), group


def test_gathers_come_after_the_last_reader_where_that_has_no_backward_pass() -> None:
    # Tensor 0 is read by operators 0 and 3, of which the last has no backward pass.
    order = [("forward", k) for k in range(4)] + [("backward", k) for k in reversed(range(4))]
    found = pace({(0, 0): (0, 3), (1, 0): (1,), (2, 0): (2,)}, (True, True, True, False), 1, order, (0,) * 4)
    assert found.gathered[None] == [(0, 0)]
    assert found.released["forward", 3] == [(0, 0)]
    assert found.gathered["backward", 1] == [(0, 0)]
    late = pace({(0, 0): (0, 3)}, (True, True, True, False), 2, order, (0,) * 4)
    assert late.gathered == {None: [(0, 0)]}
    assert late.released == {("backward", 0): [(0, 0)]}


def test_released_parameters_were_gathered_by_the_same_rank() -> None:
    graph, program = program_of(Sharding.ZERO3)
    last = [k for k, t in enumerate(graph.tensors) if t.name.startswith("layers.5.")]
    for rank in program.ranks:
        released = [b for s in rank.steps if isinstance(s, ReleaseParameters) for b in s.blocks]
        # The last layer stays from its forward to its backward pass.
        twice = [block for block in rank.parameters if block.tensor not in last]
        assert len(rank.parameters) - len(twice) == 2
        assert sorted(released, key=repr) == sorted([*rank.parameters, *twice], key=repr)


def test_optimizers_that_need_whole_parameters_are_refused_for_sharded_state() -> None:
    module, batch = Perceptron(), (torch.randn(6, 6),)
    graph = graph_of_model(module, batch)
    strategy = replace(data_parallel(graph, 2), sharding=Sharding.ZERO1)

    def scaled(named: Any) -> torch.optim.Optimizer:
        return type("LayerwiseAdaptive", (torch.optim.SGD,), {})(named, lr=0.1)

    for make in (torch.optim.Adafactor, torch.optim.LBFGS, scaled):

        def alone(named: Any, make: Callable[..., Any] = make) -> torch.optim.Optimizer:
            return make([parameter for _, parameter in named] if make is torch.optim.LBFGS else named)

        with pytest.raises(
            ExecutionError, match=r"may need whole parameters, and rank 0 updates only a part"
        ):
            runtime_of(module, batch, strategy, graph, optimizer=alone)


@pytest.mark.parametrize("first", SHARDED)
@pytest.mark.parametrize("second", list(Sharding))
def test_a_checkpoint_goes_on_under_another_sharding_and_number_of_ranks(
    tmp_path: Path, first: Sharding, second: Sharding
) -> None:
    module, data = Words(), [(torch.randint(0, 7, (4, 5)),) for _ in range(5)]
    graph = graph_of_model(module, data[0])
    losses, state = trained(module, data, decayed)
    begun = runtime_of(
        module, data[0], replace(data_parallel(graph, 3), sharding=first), graph, optimizer=decayed
    )
    found = [begun.step(*batch) for batch in data[:2]]
    other = runtime_of(
        module, data[0], replace(split_by(graph, "channel", 2), sharding=second), graph, optimizer=decayed
    )
    load_checkpoint(other, save_checkpoint(begun, tmp_path))
    found += [other.step(*batch) for batch in data[2:4]]
    # And back.
    load_checkpoint(begun, path := save_checkpoint(other, tmp_path))
    for name, content in other.state_dict().items():
        assert torch.equal(read_state_dict(path)[name], content), name
    found.append(begun.step(*data[4]))
    assert torch.allclose(torch.stack(found), torch.stack(losses), **CLOSE)
    for name, content in begun.state_dict().items():
        assert torch.allclose(content, state[name], **CLOSE), name


@pytest.mark.parametrize("sharding", SHARDED)
def test_a_state_dict_is_loaded_into_parts(sharding: Sharding) -> None:
    module, data = Words(), word_batches()
    graph = graph_of_model(module, data[0])
    losses, state = trained(module, data, sgd)
    options = {"optimizer": sgd}
    first = runtime_of(module, data[0], data_parallel(graph, 2), graph, **options)
    first.step(*data[0])
    second = runtime_of(
        module, data[0], replace(data_parallel(graph, 4), sharding=sharding), graph, **options
    )
    second.load_state_dict(first.state_dict())
    agree(second, data[1:], (losses[1:], state), str(sharding))


def in_processes(rank: int, folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    module, data = Words(), word_batches()
    graph = graph_of_model(module, data[0])
    losses, state = trained(module, data, decayed, clip=0.5)

    def start(strategy: Strategy, sharding: Sharding) -> Any:
        options = {"optimizer": decayed, "executor": "distributed", "max_gradient_norm": 0.5}
        return runtime_of(module, data[0], replace(strategy, sharding=sharding), graph, **options)

    samples, channels = data_parallel(graph, 3), split_by(graph, "channel", 3)
    for what, strategy in (("samples", samples), ("channels", channels)):
        for sharding in SHARDED:
            agree(start(strategy, sharding), data, (losses, state), f"{what}, {sharding}")
    begun = start(samples, Sharding.ZERO2)
    begun.step(*data[0])
    path = save_checkpoint(begun, folder)
    for strategy, sharding in ((channels, Sharding.ZERO3), (samples, Sharding.NONE)):
        load_checkpoint(resumed := start(strategy, sharding), path)
        agree(resumed, data[1:], (losses[1:], state), f"resumed, {sharding}")


def test_state_is_sharded_over_three_processes(tmp_path: Path) -> None:
    run_processes(in_processes, 3, str(tmp_path))


def without_packing(rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    module, batch = Layers(), (torch.randn(12, 6),)
    graph = graph_of_model(module, batch)
    expected = trained(module, [batch] * NUM_STEPS, decayed)
    # Each cell alone, in halves that follow each other in its memory.
    options = CompileOptions(bucket_bytes=1)
    samples = data_parallel(graph, 2)
    for strategy in (
        samples,
        replace(samples, micro_batches=3, schedule=Schedule.ONE_F_ONE_B),
        replace(
            pipeline(graph, 2, 3, Schedule.GPIPE), configs=data_parallel(micro_batch(graph, 3), 2).configs
        ),
    ):
        for sharding in SHARDED:
            sharded = replace(strategy, sharding=sharding)
            program = compile_program(graph, sharded, options=options)
            check_program(program, graph)
            runtime = initialize_distributed(module, graph, program, optimizer=decayed)
            gathers = [s for s in program.ranks[rank].steps if isinstance(s, GatherParameters)]
            assert all(in_order(step.parts) is not None for step in gathers)
            agree(runtime, [batch] * NUM_STEPS, expected, str(sharded))
            kept = {id(p) for p in runtime.rank.state.kept.values()}
            others = [p for p in runtime.rank.state.parameters.values() if id(p) not in kept]
            assert (len(others) == 12) is (sharding is Sharding.ZERO3)
            assert all(p.untyped_storage().nbytes() == 0 for p in others)


def test_parts_that_follow_each_other_in_memory_are_gathered_and_scattered_where_they_are() -> None:
    run_processes(without_packing, 2)


@pytest.mark.parametrize(
    ("boxes", "whole"),
    [
        ([((0, 2), (0, 3)), ((2, 4), (0, 3))], ((0, 4), (0, 3))),
        ([((5, 6), (0, 2)), ((5, 6), (2, 4))], ((5, 6), (0, 4))),
        # Columns, another order, parts of two sizes, a hole.
        ([((0, 2), (0, 3)), ((0, 2), (3, 6))], None),
        ([((2, 4), (0, 3)), ((0, 2), (0, 3))], None),
        ([((0, 3), (0, 3)), ((3, 5), (0, 3))], None),
        ([((0, 2), (0, 3)), ((3, 5), (0, 3))], None),
    ],
)
def test_parts_are_in_order_where_they_are_equal_slices_of_memory(
    boxes: list[tuple[tuple[int, int], ...]], whole: tuple[tuple[int, int], ...] | None
) -> None:
    found = in_order([[Block(tensor=3, box=box)] for box in boxes])
    assert found == (None if whole is None else Block(tensor=3, box=whole))
    assert in_order([[Block(tensor=0, box=((0, 1),))], []]) is None
    assert in_order([[Block(tensor=k, box=((k, k + 1),))] for k in range(2)]) is None


def test_tensors_are_in_a_row_where_their_memory_is() -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    rows = in_a_row([whole[:2], whole[2:]])
    assert rows is not None
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert rows.data_ptr() == whole.data_ptr()
    for contents in ([whole[:2], whole[2:].clone()], [whole[2:], whole[:2]], [whole[:, :1], whole[:, 1:2]]):
        assert in_a_row(contents) is None


def refused_by_all(rank: int) -> None:
    module, batch = Perceptron(), (torch.randn(6, 6),)
    graph = graph_of_model(module, batch)
    strategy = replace(data_parallel(graph, 2), sharding=Sharding.ZERO1)
    with pytest.raises(ExecutionError, match="rank 0 updates only a part"):
        runtime_of(module, batch, strategy, graph, optimizer=torch.optim.Adafactor, executor="distributed")


def test_all_processes_refuse_an_optimizer_alike() -> None:
    run_processes(refused_by_all, 2)
