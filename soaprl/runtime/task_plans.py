"""How one rank runs its tasks: what stays the same in all iterations."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from soaprl.graph.factors import part_box
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import inside
from soaprl.runtime.calls import Kernel
from soaprl.runtime.kernels_dense import without_running_statistics
from soaprl.runtime.plans import PartPlan, apply
from soaprl.runtime.program import Block, CompileOptions, Forward, Piece, RankProgram, Read
from soaprl.runtime.rank_parameters import RankParameters
from soaprl.runtime.segments import Task, outer_outputs, segments_of
from soaprl.runtime.shards import region
from soaprl.runtime.statistics import normalizations, synchronized_calls
from soaprl.runtime.stores import Assembly
from soaprl.strategy.strategy import OpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How a task gets a region of an input.

    Attributes:
        assembly: How it is put together.
        piece: The piece that it is, where it is one piece and needs nothing more.
        inner: For each piece, whether it is differentiated in the graph that the task is in.
    """

    assembly: Assembly
    piece: Piece | None
    inner: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """What stays the same in all iterations of one task.

    Attributes:
        part: Makes the plan of the part of the operator; its slots may be given numbers.
        segment: The number of the segment whose graph it is in; -1 without a backward pass.
        reads: How it gets each input.
        parameters: For each parameter its content, or None where that must be entered.
        blocks: The blocks of these parameters.
        buffers: The blocks of buffers that it reads.
        stops: The calls of the body at whose statistics it waits for others.
        recorded: The calls whose batch statistics are to be recorded.
        written: What it writes.
        outer: For each of these, whether gradients come from elsewhere than the segment.
    """

    part: Callable[..., PartPlan]
    segment: int
    reads: tuple[ReadPlan, ...]
    parameters: tuple[Tensor | None, ...]
    blocks: tuple[Block, ...]
    buffers: tuple[Block, ...]
    stops: tuple[int, ...]
    recorded: tuple[int, ...]
    written: tuple[Piece, ...]
    outer: tuple[bool, ...]


class TaskPlans:
    """The plans of a rank's tasks, each made when the task first runs.

    Args:
        graph: The graph that the program's steps name.
        program: The rank's program.
        configs: The configuration of each operator.
        options: How the program was compiled.
        table: Kernels.
        parameters: The rank's parameters.
        in_place: The running statistics that normalizations may update themselves.

    Attributes:
        segment_of: The number of the segment of each task with a backward pass.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: RankProgram,
        configs: tuple[OpConfig, ...],
        options: CompileOptions,
        table: Mapping[str, Kernel],
        parameters: RankParameters,
        in_place: Set[int] = frozenset(),
    ) -> None:
        self._graph, self._configs, self._options, self._table = graph, configs, options, table
        self._parameters, self._in_place = parameters, in_place
        self.segment_of = segments_of(program)
        self._outer = outer_outputs(program, self.segment_of)
        self._known: dict[Task, TaskPlan] = {}

    def of(self, step: Forward) -> TaskPlan:
        """The plan of the task of a step; of a task in stages, the first one comes first."""
        key = (step.operator, step.part)
        return self._known.get(key) or self._new(step)

    def _new(self, step: Forward) -> TaskPlan:
        operator, config = self._graph.operators[step.operator], self._configs[step.operator]
        key = (step.operator, step.part)
        boxes = tuple(part_box(operator.extents, config.degrees, p) for p in range(config.num_tasks))
        box = boxes[step.part]
        written = tuple(Piece(tensor=a.tensor, part=step.part, box=region(a, box)) for a in operator.outputs)
        stops = tuple(n.call for n in synchronized_calls(operator, boxes, self._options.batch_norm))
        table, recorded = self._table, step.statistics
        if recorded and not stops:
            updating = {target: k for target, k in table.items() if k is not without_running_statistics}
            part = PartPlan(operator, config.degrees, step.part, updating)
            if self._updates_itself(part, recorded):
                table, recorded = updating, ()
        segment = self.segment_of.get(key, -1)
        plan = self._known[key] = TaskPlan(
            part=partial(PartPlan, operator, config.degrees, step.part, table),
            segment=segment,
            reads=tuple(self._read_plan(read, segment) for read in step.reads),
            parameters=tuple(
                self._parameters.content(block, access.gradient and operator.has_backward)
                for block, access in zip(step.parameters, operator.parameters, strict=True)
            ),
            blocks=step.parameters,
            buffers=step.buffers,
            stops=stops,
            recorded=recorded,
            written=written,
            outer=tuple(
                operator.has_backward and (piece.tensor, piece.part) in self._outer for piece in written
            ),
        )
        return plan

    def _updates_itself(self, part: PartPlan, recorded: tuple[int, ...]) -> bool:
        """Whether the library may update all running statistics that a task reads, where they are."""
        operator = part.operator
        found = [n for n in normalizations(operator) if n.running is not None]
        others = any("instance_norm" in call.target for call in operator.body)
        return (
            not others
            and {n.call for n in found} == set(recorded)
            and all(self._where_it_is(part, n.call, k) for n in found for k in n.running or ())
        )

    def _where_it_is(self, part: PartPlan, call: int, position: int) -> bool:
        """Whether a call gets a buffer itself, and not a copy of what it needs of it."""
        operator = part.operator
        access, slot = operator.buffers[position], len(operator.inputs) + len(operator.parameters) + position
        if access.tensor not in self._in_place or slot not in part.calls[call].plainly:
            return False
        shape = self._graph.tensors[access.tensor].refined_shape
        whole = torch.empty(shape)
        own = whole[inside(region(access, part.box), tuple((0, extent) for extent in shape))]
        given = apply(dict(part.arranged).get(slot, ()), own)
        return given.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

    def _read_plan(self, read: Read, segment: int) -> ReadPlan:
        how = "sum"
        if read.tensor in self._graph.producer:
            producer = self._graph.producer[read.tensor]
            outputs = self._graph.operators[producer].outputs
            how = next(access.combine for access in outputs if access.tensor == read.tensor)
            inner = tuple(
                read.gradient and segment >= 0 and self.segment_of.get((producer, piece.part), -1) == segment
                for piece in read.pieces
            )
        else:
            inner = ()
        only = read.pieces[0] if len(read.pieces) == 1 and read.pieces[0].box == read.box else None
        return ReadPlan(
            assembly=Assembly(self._graph.tensors[read.tensor], read, how),
            piece=only if inner == (True,) or segment < 0 else None,
            inner=inner,
        )
