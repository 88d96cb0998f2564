"""Checks one rank's program by following what is there: contents, gradients, finished tasks."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from soaprl.errors import ProgramError
from soaprl.graph.operators import TensorRole
from soaprl.runtime.boxes import common, num_elements
from soaprl.runtime.check_errors import names, wrong_rank, wrong_step
from soaprl.runtime.check_expected import expected_blocks, expected_loss, expected_partials, expected_reads
from soaprl.runtime.layout import Tasks
from soaprl.runtime.micro_batches import Unrolled
from soaprl.runtime.program import (
    Backward,
    Block,
    Exchange,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    Piece,
    Program,
    RankProgram,
    Read,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    Step,
    SumPartials,
    Update,
    waits_of,
)
from soaprl.runtime.sources import constant_arguments
from soaprl.runtime.statistics import channel_groups, synchronized_calls
from soaprl.strategy.strategy import Sharding

_Task = tuple[int, int]


def check_rank(program: Program, work: Unrolled, tasks: tuple[Tasks, ...], rank: RankProgram) -> None:
    """Raises `ProgramError` unless the steps of `rank` are right, taken for themselves.

    Args:
        program: The program.
        work: Its graph and strategy, with a copy of each operator for each micro-batch.
        tasks: The tasks of every operator.
        rank: The rank's part of the program.
    """
    follower = _Follower(program, work, tasks, rank)
    for index, step in enumerate(rank.steps):
        follower.follow(index, step)
    follower.finish()


class _Follower:
    """What is there after the steps so far."""

    def __init__(self, program: Program, work: Unrolled, tasks: tuple[Tasks, ...], rank: RankProgram) -> None:
        self.program, self.graph, self.tasks, self.rank = program, work.graph, tasks, rank
        self.work, self.place = work, -1
        self.places = {passed: place for place, passed in enumerate(work.order)}
        self.makers = {t: call for call, made in enumerate(self.graph.constant_results) for t in made}
        self.loaded: set[Block] = set()
        self.made: set[int] = set()
        self.posted: dict[int, Step] = {}
        self.written: dict[tuple[int, int], Piece] = {}
        self.received: set[Piece] = set()
        self.unused: set[Piece] = set()
        # Who still owes a gradient to each piece, and the received pieces that a gradient must go back for.
        self.owed: dict[Piece, set[_Task]] = {}
        self.returnable: set[Piece] = set()
        sums = [step for step in rank.steps if isinstance(step, SumPartials)]
        self.totals = {step.total for step in sums if step.direction == "forward"}
        self.stages: dict[_Task, int] = {}
        self.backward: dict[_Task, int] = {}
        self.statistics: set[tuple[str, int, int, int]] = set()
        self.seeded: set[int] = set()
        self.reduced: list[tuple[int, Block]] = []
        # Where parameters are sharded: the blocks that are not always there as a whole, and those that are.
        self.kept_in_parts = self._kept_in_parts()
        self.gathered: Counter[Block] = Counter()
        each_time = program.sharding.synchronizes_each_pass
        self.times_reduced = program.micro_batches if each_time else 1
        self.updates = any(isinstance(step, Update) for step in rank.steps)
        self.updated = False

    def wrong(self, problem: str) -> ProgramError:
        return wrong_step(self.graph, self.rank.rank, self.index, self.step, problem)

    def _kept_in_parts(self) -> set[Block]:
        if self.program.sharding is not Sharding.ZERO3:
            return set()
        gathers = [step for step in self.rank.steps if isinstance(step, GatherParameters)]
        parts = [part for step in gathers for part in chain(*step.parts)]
        return {
            block
            for block in self.rank.parameters
            if sum(_shared_elements(block, own) for own in self.rank.owned) < num_elements(block.box)
            or any(_shared_elements(block, part) for part in parts)
        }

    def follow(self, index: int, step: Step) -> None:
        self.index, self.step = index, step
        if self.updated and not isinstance(step, GatherParameters):
            raise self.wrong("expected nothing after the update")
        for number in waits_of(step):
            self._arrive(self.posted.pop(number))
        match step:
            case LoadInputs():
                self._load(step)
            case MakeConstants():
                self._make(step)
            case Forward():
                self._forward(step)
            case Backward():
                self._backward(step)
            case Exchange():
                self._send(step)
            case SumPartials():
                self._sum(step)
            case ReduceStatistics():
                self._reduce_statistics(step)
            case ReduceLoss():
                self._loss(step)
            case ReduceGradients():
                self._reduce(step, step.cells)
            case ScatterGradients():
                self._reduce(step, tuple(chain(*step.parts)))
            case GatherParameters():
                self._gather()
            case ReleaseParameters():
                self._release(step)
            case ReduceNorm():
                self._reductions_are_there()
            case Update():
                self._reductions_are_there()
                self.updated = True
        if hasattr(step, "id"):
            self.posted[step.id] = step

    # Contents.

    def _load(self, step: LoadInputs) -> None:
        for block in step.blocks:
            if self.graph.tensors[block.tensor].role is not TensorRole.INPUT:
                raise self.wrong(f"{self.graph.tensors[block.tensor].name!r} is no graph input")
        self.loaded.update(step.blocks)

    def _make(self, step: MakeConstants) -> None:
        for call in step.calls:
            for tensor in constant_arguments(self.graph, call):
                self._constant_is_there(tensor)
            self.made.add(call)

    def _constant_is_there(self, tensor: int) -> None:
        call = self.makers.get(tensor)
        if call not in self.made if call is not None else tensor not in self.rank.buffers:
            raise self.wrong(f"{self.graph.tensors[tensor].name!r} is not there")

    def _arrive(self, step: Step) -> None:
        if isinstance(step, ReduceStatistics):
            self.statistics.update((step.direction, step.operator, step.stage, part) for part in step.parts)
        if isinstance(step, GatherParameters):
            self._parameters_arrive(step)
        if isinstance(step, SumPartials):
            own = step.pieces[step.group.index(self.rank.rank)]
            self._piece_arrives(own if step.direction == "backward" else step.total, step)
        if isinstance(step, Exchange):
            for piece in (piece for message in step.receives for piece in message.pieces):
                self._piece_arrives(piece, step)

    def _piece_arrives(self, piece: Piece, step: Exchange | SumPartials) -> None:
        if step.direction == "backward":
            self._gradient_arrives(piece)
        elif piece in self.received:
            raise self.wrong(f"{self._name(piece)} was received before")
        else:
            self.received.add(piece)
            self.unused.add(piece)

    def _is_there(self, piece: Piece) -> bool:
        self.unused.discard(piece)
        return piece in self.received or self.written.get((piece.tensor, piece.part)) == piece

    def _name(self, piece: Piece) -> str:
        return f"{self.graph.tensors[piece.tensor].name!r} of part {piece.part}, box {piece.box}"

    # Tasks.

    def _forward(self, step: Forward) -> None:
        operator, layout, task = *self._task(step), (step.operator, step.part)
        shared = synchronized_calls(operator, layout.boxes, self.program.options.batch_norm)
        if self.stages.get(task, -1) != step.stage - 1:
            raise self.wrong(f"expected stage {self.stages.get(task, -1) + 1}")
        self.stages[task] = step.stage
        if step.stage == 0:
            self._reads(step, layout)
        elif ("forward", step.operator, step.stage - 1, step.part) not in self.statistics:
            raise self.wrong(f"it does not wait for the statistics of stage {step.stage - 1}")
        written = tuple(
            Piece(tensor=access.tensor, part=step.part, box=boxes[step.part])
            for access, boxes in zip(operator.outputs, layout.outputs, strict=True)
        )
        if step.writes != (written if step.stage == len(shared) else ()):
            raise self.wrong(f"expected that it writes {written if step.stage == len(shared) else 'nothing'}")
        self.written.update({(piece.tensor, piece.part): piece for piece in step.writes})

    def _task(self, step: Forward | Backward) -> tuple:  # type: ignore[type-arg]
        place = self.places[step.kind, step.operator]
        if place < self.place:
            raise self.wrong("the schedule has it before the pass that came last")
        self.place = place
        self._parameters_are_there(step)
        layout = self.tasks[step.operator]
        if step.part >= len(layout.ranks) or layout.ranks[step.part] != self.rank.rank:
            raise self.wrong("the strategy has no such task on this rank")
        return self.graph.operators[step.operator], layout

    def _reads(self, step: Forward, layout: Tasks) -> None:
        operator = self.graph.operators[step.operator]
        reads = expected_reads(self.graph, self.tasks, step.operator, step.part, self.totals)
        for wanted, found in zip(reads, step.reads, strict=False):
            if wanted != found:
                raise self.wrong(f"expected that it reads {wanted}, found {found}")
        if len(reads) != len(step.reads):
            raise self.wrong(f"expected {len(reads)} reads, found {len(step.reads)}")
        for read in step.reads:
            self._read_is_there(step, read)
        parameters = expected_blocks(operator.parameters, layout.parameters, step.part)
        buffers = expected_blocks(operator.buffers, layout.buffers, step.part)
        if (step.parameters, step.buffers) != (parameters, buffers):
            problem = f"expected the parameters {parameters} and the buffers {buffers}"
            raise self.wrong(f"{problem}, found {step.parameters} and {step.buffers}")
        for block in buffers:
            self._constant_is_there(block.tensor)
        for block in parameters:
            mine = [held.box for held in self.rank.parameters if held.tensor == block.tensor]
            if sum(num_elements(common(box, block.box)) for box in mine) != num_elements(block.box):
                raise self.wrong(f"the rank does not hold all of {self.graph.tensors[block.tensor].name!r}")

    def _read_is_there(self, step: Forward, read: Read) -> None:
        role = self.graph.tensors[read.tensor].role
        if role is TensorRole.INPUT and Block(tensor=read.tensor, box=read.box) not in self.loaded:
            raise self.wrong(f"{self.graph.tensors[read.tensor].name!r}, box {read.box}, was not loaded")
        if role not in (TensorRole.INPUT, TensorRole.ACTIVATION):
            self._constant_is_there(read.tensor)
        for piece in read.pieces:
            if not self._is_there(piece):
                raise self.wrong(f"{self._name(piece)} was neither written here nor awaited")
            if read.gradient:
                self.owed.setdefault(piece, set()).add((step.operator, step.part))
                if piece in self.received:
                    self.returnable.add(piece)

    def _backward(self, step: Backward) -> None:
        operator, layout, task = *self._task(step), (step.operator, step.part)
        shared = synchronized_calls(operator, layout.boxes, self.program.options.batch_norm)
        if self.stages.get(task) != len(shared) or not operator.has_backward:
            raise self.wrong("its forward pass has not run, or it has no backward pass")
        if self.backward.get(task, len(shared) + 1) != step.stage + 1:
            raise self.wrong(f"expected stage {self.backward.get(task, len(shared) + 1) - 1}")
        self.backward[task] = step.stage
        if step.stage < len(shared):
            if ("backward", step.operator, step.stage, step.part) not in self.statistics:
                raise self.wrong(f"it does not wait for the statistics of stage {step.stage}")
        elif any(a.tensor in self.work.losses and a.tensor not in self.seeded for a in operator.outputs):
            raise self.wrong("the loss has not been reduced")
        for (tensor, part), piece in self.written.items():
            if part == step.part and self.graph.producer[tensor] == step.operator and self.owed.get(piece):
                owing = names(self.graph, self.owed[piece])
                raise self.wrong(f"the gradient of {self._name(piece)} still lacks that of {owing}")
        if step.stage == 0:
            for readers in self.owed.values():
                readers.discard(task)

    # Gradients between ranks.

    def _send(self, step: Exchange) -> None:
        for piece in (piece for message in step.sends for piece in message.pieces):
            if step.direction == "forward":
                own = self.written.get((piece.tensor, piece.part))
                if own is None or common(own.box, piece.box) != piece.box:
                    raise self.wrong(f"{self._name(piece)} was not written before it is sent")
            else:
                self._return(piece)

    def _return(self, piece: Piece) -> None:
        """The gradient of a piece goes back to who wrote it."""
        if piece not in self.returnable:
            raise self.wrong(f"{self._name(piece)} needs no gradient, or has sent it before")
        if self.owed[piece]:
            owing = names(self.graph, self.owed[piece])
            raise self.wrong(f"the gradient of {self._name(piece)} still lacks that of {owing}")
        self.returnable.discard(piece)

    def _sum(self, step: SumPartials) -> None:
        expected = expected_partials(self.graph, self.tasks, step.total)
        if step.group != tuple(expected) or step.pieces != tuple(expected.values()):
            raise self.wrong(f"expected a sum of all that is written there, {expected}")
        own = expected[self.rank.rank]
        if self.written.get((own.tensor, own.part)) != own:
            raise self.wrong(f"{self._name(own)} was not written before it is summed")
        # A rank whose readers give no gradient takes part all the same.
        if step.direction == "backward" and (step.total in self.returnable or self.owed.get(step.total)):
            self._return(step.total)

    def _gradient_arrives(self, piece: Piece) -> None:
        task = (self.graph.producer[piece.tensor], piece.part)
        own = self.written.get((piece.tensor, piece.part))
        if own is None or common(own.box, piece.box) != piece.box:
            raise self.wrong(f"a gradient of {self._name(piece)} arrives, which this rank did not write")
        if task in self.backward:
            raise self.wrong(f"a gradient of {self._name(piece)} arrives after the backward pass of its task")

    def _reduce_statistics(self, step: ReduceStatistics) -> None:
        operator, layout = self.graph.operators[step.operator], self.tasks[step.operator]
        shared = synchronized_calls(operator, layout.boxes, self.program.options.batch_norm)
        groups = channel_groups(layout.boxes, shared[step.stage]) if step.stage < len(shared) else ()
        if step.parts not in groups:
            raise self.wrong(f"expected one of the groups {groups}, found {step.parts}")
        if step.group != tuple(sorted({layout.ranks[p] for p in step.parts})):
            raise self.wrong("its group is not the ranks of its parts")
        done, wanted = (
            (self.stages, step.stage) if step.direction == "forward" else (self.backward, step.stage + 1)
        )
        for part in step.parts:
            if layout.ranks[part] == self.rank.rank and done.get((step.operator, part)) != wanted:
                raise self.wrong(f"part {part} has not given its statistics")

    def _loss(self, step: ReduceLoss) -> None:
        if not 0 <= step.micro_batch < len(self.work.losses) or step.weight != self.work.loss_weight:
            raise self.wrong(f"expected one of {len(self.work.losses)}, of weight {self.work.loss_weight}")
        loss = self.work.losses[step.micro_batch]
        pieces, counted = expected_loss(self.graph, self.tasks, self.rank.rank, loss)
        if step.pieces != pieces or step.group != tuple(range(self.program.num_ranks)):
            raise self.wrong(f"expected the pieces {pieces} and all ranks")
        if step.counted != counted:
            raise self.wrong("the loss is not counted once")
        for piece in pieces:
            if not self._is_there(piece):
                raise self.wrong(f"{self._name(piece)} was neither written here nor awaited")
        if loss in self.seeded:
            raise self.wrong("expected one reduction of the loss")
        self.seeded.add(loss)

    def _reduce(self, step: ReduceGradients | ScatterGradients, cells: tuple[Block, ...]) -> None:
        if isinstance(step, ScatterGradients) is (self.program.sharding is Sharding.NONE):
            raise self.wrong(f"the strategy's sharding is {self.program.sharding.value!r}")
        for cell in cells:
            before = sum(_shared_elements(other, cell) > 0 for _, other in self.reduced)
            if before >= self.times_reduced:
                raise self.wrong(f"{self.graph.tensors[cell.tensor].name!r} is reduced too often")
            if before < self.times_reduced - 1:
                continue
            late = {task for task in self._contributors(cell) if self.backward.get(task) != 0}
            if late:
                raise self.wrong(f"the backward pass of {names(self.graph, late)} still has to contribute")
        self.reduced += [(step.id, cell) for cell in cells]

    def _contributors(self, cell: Block) -> Iterable[_Task]:
        for number, (operator, layout) in enumerate(zip(self.graph.operators, self.tasks, strict=True)):
            for access, boxes in zip(operator.parameters, layout.parameters, strict=True):
                if access.tensor == cell.tensor and access.gradient and operator.has_backward:
                    for part, rank in enumerate(layout.ranks):
                        if rank == self.rank.rank and num_elements(common(boxes[part], cell.box)):
                            yield number, part

    def _reductions_are_there(self) -> None:
        for number, step in self.posted.items():
            if isinstance(step, ReduceGradients | ScatterGradients | ReduceNorm):
                raise self.wrong(f"it does not wait for #{number}")

    # Parameters that are sharded.

    def _gather(self) -> None:
        if self.program.sharding is Sharding.NONE:
            raise self.wrong("the strategy shards nothing")
        if self.program.sharding is not Sharding.ZERO3 and self.updates and not self.updated:
            raise self.wrong("expected it after the update")

    def _parameters_arrive(self, step: GatherParameters) -> None:
        parts = list(chain(*step.parts))
        for block in self.kept_in_parts:
            found = sum(_shared_elements(block, part) for part in parts)
            if found and found != num_elements(block.box):
                name = self.graph.tensors[block.tensor].name
                raise self.wrong(f"#{step.id} brings only a part of {name!r}")
            if found:
                self.gathered[block] += 1

    def _release(self, step: ReleaseParameters) -> None:
        for block in step.blocks:
            if not self.gathered[block]:
                raise self.wrong(f"{self.graph.tensors[block.tensor].name!r} was not gathered before")
            self.gathered[block] -= 1

    def _parameters_are_there(self, step: Forward | Backward) -> None:
        operator, layout = self.graph.operators[step.operator], self.tasks[step.operator]
        for block in expected_blocks(operator.parameters, layout.parameters, step.part):
            for held in self.kept_in_parts:
                if not self.gathered[held] and _shared_elements(held, block):
                    name = self.graph.tensors[held.tensor].name
                    raise self.wrong(f"{name!r} was neither kept whole nor gathered and awaited")

    def finish(self) -> None:
        """Checks that nothing is missing or left over."""

        def wrong(problem: str) -> ProgramError:
            return wrong_rank(self.graph, self.rank.rank, problem)

        ranks = {(o, p): r for o, layout in enumerate(self.tasks) for p, r in enumerate(layout.ranks)}
        mine = {task for task, rank in ranks.items() if rank == self.rank.rank}
        missing = {task for task in mine if not self._ran(task)}
        if missing:
            raise wrong(f"the forward pass of {names(self.graph, missing)} is missing")
        missing = {
            task
            for task in mine
            if self.graph.operators[task[0]].has_backward and self.backward.get(task) != 0
        }
        if missing:
            raise wrong(f"the backward pass of {names(self.graph, missing)} is missing")
        if self.unused:
            raise wrong(f"{self._name(min(self.unused, key=repr))} is received and never used")
        if self.returnable:
            raise wrong(f"the gradient of {self._name(min(self.returnable, key=repr))} never goes back")
        for step in self.posted.values():
            if isinstance(step, SumPartials) or (isinstance(step, Exchange) and step.receives):
                raise wrong(f"nothing waits for #{step.id}, which brings something")
        if self.seeded != set(self.work.losses):
            raise wrong("the loss is not reduced")
        if left := +self.gathered:
            first = min(self.graph.tensors[block.tensor].name for block in left)
            raise wrong(f"{first!r} is gathered and never released")

    def _ran(self, task: _Task) -> bool:
        tensors = [access.tensor for access in self.graph.operators[task[0]].outputs]
        return task in self.stages and all((tensor, task[1]) in self.written for tensor in tensors)


def _shared_elements(first: Block, second: Block) -> int:
    return num_elements(common(first.box, second.box)) if first.tensor == second.tensor else 0
