"""The static program of every rank: what it computes, sends, receives, reduces and updates, in order.

Names. What tasks write is a `Piece`: a tensor, the task (part) of its producer, and a box in the refined
coordinates of the tensor. The box is all that the task writes, on the rank that runs the task, or what a
delivery brought of it, on another rank. A `Block` is a box of a tensor that no task writes: a graph input, a
parameter, a buffer. The gradient of a piece has the name of the piece.

Order. Every step that involves several ranks has an `id`; each rank's steps have ascending ids, and all ranks
of a step have the same id for it. So all ranks take part in what they share in one global order, and no rank
can wait for one that waits for it, even if every send waited for its receive (`soaprl.runtime.check` proves
both). Steps with an id start when the rank comes to them; a later step that needs what they bring names them
in its `waits`. An id that no step waits for need not be complete before the end of the iteration.

The order of the computations is that of the simulator: operators forwards, then backwards, or the order of
the schedule of micro-batches. Operators and tensors are numbered as in the graph that
`soaprl.runtime.micro_batches.unrolled` gives: that of the model, or one with copies for each micro-batch.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator

from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy

Box: TypeAlias = tuple[tuple[int, int], ...]
Direction: TypeAlias = Literal["forward", "backward"]
BatchNorm: TypeAlias = Literal["local", "synchronized"]
Precision: TypeAlias = Literal["stored", "bfloat16"]
Pattern: TypeAlias = Literal["point_to_point", "all_gather", "all_to_all"]
# In the place of a task: the sum of what all tasks wrote that write a box.
SUMMED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Something that a task wrote, or a box of it.

    Attributes:
        tensor: Index of the tensor in the graph.
        part: The task of its producer that wrote it, or `SUMMED`.
        box: Which elements, in refined coordinates.
    """

    tensor: int
    part: int
    box: Box

    def __hash__(self) -> int:
        # Pieces are looked up all the time, and few have the same tensor and part.
        return hash((self.tensor, self.part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A box of a graph input, parameter or buffer.

    Attributes:
        tensor: Index of the tensor in the graph.
        box: Which elements, in refined coordinates.
    """

    tensor: int
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """How a task gets the region that it reads of one input.

    Attributes:
        tensor: Index of the tensor in the graph.
        box: The region, in refined coordinates.
        pieces: What it is made of, by part: each gives its overlap with the region. Pieces with the same
            overlap are partial results, to be combined in this order as the producer's `Access.combine` says.
            Empty for graph inputs and constants, which are read from their block or whole tensor.
        gradient: Whether the task's backward pass gives a gradient to each of the pieces.
    """

    tensor: int
    box: Box
    pieces: tuple[Piece, ...]
    gradient: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What goes between this rank and a peer in one packed buffer.

    Attributes:
        peer: The other rank.
        pieces: Their elements follow each other in this order, row-major.
        num_bytes: Bytes of all pieces.
    """

    peer: int
    pieces: tuple[Piece, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadInputs:
    """Takes these blocks of the graph inputs from the batch; blocks of a tensor may overlap."""

    blocks: tuple[Block, ...]
    kind: Literal["load_inputs"] = "load_inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeConstants:
    """Runs these of the graph's constant calls, in order; their results are whole."""

    calls: tuple[int, ...]
    kind: Literal["make_constants"] = "make_constants"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The forward pass of one task, or a stage of it.

    An operator with synchronized batch normalization runs in stages. Each but the last ends with the part's
    statistics, which the `ReduceStatistics` of the stage combines; the next one continues with the result.

    Attributes:
        operator: Index of the operator.
        part: Which task.
        stage: 0 for an operator without synchronized statistics.
        waits: Ids that must be complete.
        reads: For each input of the operator, what the task reads; only in stage 0.
        parameters: The same for each parameter.
        buffers: The same for each buffer.
        writes: For each output, what the task writes; only in the last stage.
        statistics: The calls of the body whose batch statistics enter the running statistics of this rank.
    """

    operator: int
    part: int
    stage: int
    waits: tuple[int, ...]
    reads: tuple[Read, ...]
    parameters: tuple[Block, ...]
    buffers: tuple[Block, ...]
    writes: tuple[Piece, ...]
    statistics: tuple[int, ...]
    kind: Literal["forward"] = "forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """The backward pass of one task, or a stage of it; stages run in reverse.

    It takes the gradients of what the task wrote: what the readers on this rank gave, plus what the awaited
    exchanges brought. Stage 0 gives gradients to the parameters and to the pieces of each read that asks.

    Attributes:
        operator: Index of the operator.
        part: Which task.
        stage: 0 for an operator without synchronized statistics.
        waits: Ids that must be complete.
    """

    operator: int
    part: int
    stage: int
    waits: tuple[int, ...]
    kind: Literal["backward"] = "backward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Sends and receives, all at once: what one operator wrote, or the gradients that it completed.

    Forward messages hold pieces that `operator` wrote; the receiver keeps them under the same names.
    Backward messages hold gradients, summed over all readers on the sending rank, of pieces that it received;
    the receiver, which wrote them, adds each to the gradient of what it wrote.

    Attributes:
        id: Place in the global order.
        direction: Of which pass.
        operator: Index of the operator after whose tasks the exchange comes.
        sends: At most one message for each peer, by peer.
        receives: The same.
        pattern: ``all_gather`` if each rank of `group` sends the same pieces to all others, ``all_to_all`` if
            each sends as many bytes to each other; the buffers are the same either way.
        group: All ranks that take part, ascending.
    """

    id: int
    direction: Direction
    operator: int
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]
    pattern: Pattern
    group: tuple[int, ...]
    kind: Literal["exchange"] = "exchange"


@dataclass(frozen=True, slots=True, kw_only=True)
class SumPartials:
    """Sums the partial results of one box over the ranks that wrote them, all of which read the sum.

    It takes the place of an `Exchange` in which each of these ranks would send its own to all others. In the
    forward pass each rank then has the sum, as a piece of the part `SUMMED`. In the backward pass it sums the
    gradients that readers gave to that piece; the total is the gradient of what each rank wrote.

    Attributes:
        id: Place in the global order.
        direction: Of which pass.
        operator: Index of the operator after whose tasks it comes.
        group: The ranks, ascending.
        pieces: What each of them wrote; of one box.
        num_bytes: Bytes of the box.
    """

    id: int
    direction: Direction
    operator: int
    group: tuple[int, ...]
    pieces: tuple[Piece, ...]
    num_bytes: int
    kind: Literal["sum_partials"] = "sum_partials"

    @property
    def total(self) -> Piece:
        """The sum."""
        return replace(self.pieces[0], part=SUMMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceStatistics:
    """Sums a table over the ranks of a group, for synchronized batch normalization.

    The table has a row for each of `parts`. In the forward pass a rank fills in the rows of its own tasks; in
    the backward pass it adds up what its tasks give as the gradient of the whole table.

    Attributes:
        id: Place in the global order.
        direction: Of which pass.
        operator: Index of the operator.
        stage: The forward stage that ends with it.
        parts: The tasks that normalize the same channels together, ascending.
        group: Their ranks, ascending.
    """

    id: int
    direction: Direction
    operator: int
    stage: int
    parts: tuple[int, ...]
    group: tuple[int, ...]
    kind: Literal["reduce_statistics"] = "reduce_statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceLoss:
    """Sums the loss over all ranks, and seeds the backward pass.

    The gradient of the loss with respect to each piece that this rank wrote is 1 if the loss is a sum of
    them, and that of the combination otherwise.

    Attributes:
        id: Place in the global order.
        group: All ranks.
        waits: Ids that must be complete.
        pieces: By part: the pieces of this rank if the loss is their sum, else those of all ranks.
        counted: Whether this rank adds the combination of its pieces to the sum (else it adds 0).
        micro_batch: Whose loss it is.
        weight: What it counts in the loss of the batch, which is the sum over the micro-batches.
    """

    id: int
    group: tuple[int, ...]
    waits: tuple[int, ...]
    pieces: tuple[Piece, ...]
    counted: bool
    micro_batch: int = 0
    weight: float = 1.0
    kind: Literal["reduce_loss"] = "reduce_loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceGradients:
    """Sums the gradients of parameter cells over the ranks that hold them: one bucket.

    Attributes:
        id: Place in the global order.
        group: All ranks that hold the cells, ascending.
        cells: Their elements follow each other in this order, row-major; of one data type.
        num_bytes: Bytes of all cells.
    """

    id: int
    group: tuple[int, ...]
    cells: tuple[Block, ...]
    num_bytes: int
    kind: Literal["reduce_gradients"] = "reduce_gradients"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterGradients:
    """Sums the gradients of parameter cells over the ranks that hold them; each gets the sum of its part.

    It takes the place of `ReduceGradients` where state is sharded. A rank may give up its gradients of the
    cells once it has given them.

    Attributes:
        id: Place in the global order.
        group: All ranks that hold the cells, ascending.
        parts: For each of these ranks, what it gets: disjoint boxes, of all ranks together the cells; of one
            data type.
        num_bytes: Bytes of all cells.
    """

    id: int
    group: tuple[int, ...]
    parts: tuple[tuple[Block, ...], ...]
    num_bytes: int
    kind: Literal["scatter_gradients"] = "scatter_gradients"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherParameters:
    """Gives each rank of a group the parts of parameter cells that the others keep.

    Where optimizer state or gradients are sharded, it follows the update. Where parameters are sharded, it
    comes before a pass that reads the cells, which lasts until a `ReleaseParameters`.

    Attributes:
        id: Place in the global order.
        group: All ranks that hold the cells, ascending.
        parts: For each of these ranks, what it gives: disjoint boxes, of all ranks together the cells; of one
            data type.
        num_bytes: Bytes of all cells.
    """

    id: int
    group: tuple[int, ...]
    parts: tuple[tuple[Block, ...], ...]
    num_bytes: int
    kind: Literal["gather_parameters"] = "gather_parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseParameters:
    """Gives up the content of blocks of parameters that were gathered for a pass.

    Attributes:
        waits: Ids that must be complete.
        blocks: Some of this rank's.
    """

    waits: tuple[int, ...]
    blocks: tuple[Block, ...]
    kind: Literal["release_parameters"] = "release_parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceNorm:
    """Sums the squares of all gradients over all ranks that have parameters, for clipping.

    Attributes:
        id: Place in the global order.
        group: Those ranks, ascending.
        waits: Ids that must be complete.
        cells: What this rank counts; each trainable element is counted by one rank.
    """

    id: int
    group: tuple[int, ...]
    waits: tuple[int, ...]
    cells: tuple[Block, ...]
    kind: Literal["reduce_norm"] = "reduce_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBuffers:
    """Enters the recorded batch statistics into running statistics.

    A buffer that one call writes is updated where this rank recorded statistics, without communication
    (the group is this rank). One that several calls write (a layer used more than once) is updated whole on
    all ranks of the group, from the sum of what they recorded.

    Attributes:
        id: Place in the global order.
        group: The ranks that recorded statistics of the buffers, ascending.
        buffers: Indices of the tensors.
    """

    id: int
    group: tuple[int, ...]
    buffers: tuple[int, ...]
    kind: Literal["update_buffers"] = "update_buffers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The optimizer's step.

    Attributes:
        waits: Ids that must be complete.
        parameters: What this rank updates: the blocks of its parameters that are trained, or, where state is
            sharded, its parts of them. A gradient that nothing contributed to is 0.
    """

    waits: tuple[int, ...]
    parameters: tuple[Block, ...]
    kind: Literal["update"] = "update"


Step: TypeAlias = Annotated[
    LoadInputs
    | MakeConstants
    | Forward
    | Backward
    | Exchange
    | SumPartials
    | ReduceStatistics
    | ReduceLoss
    | ReduceGradients
    | ScatterGradients
    | GatherParameters
    | ReleaseParameters
    | ReduceNorm
    | UpdateBuffers
    | Update,
    Discriminator("kind"),
]
# What the ranks of a group do together, and not by messages.
Collective: TypeAlias = (
    SumPartials
    | ReduceStatistics
    | ReduceLoss
    | ReduceGradients
    | ScatterGradients
    | GatherParameters
    | ReduceNorm
    | UpdateBuffers
)
Shared: TypeAlias = Exchange | Collective


def waits_of(step: Step) -> tuple[int, ...]:
    """The ids of the shared steps that must be complete before a step."""
    if isinstance(step, Forward | Backward | ReduceLoss | ReduceNorm | ReleaseParameters | Update):
        return step.waits
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgram:
    """What one rank holds and does.

    Attributes:
        rank: The rank; the number of its device in the strategy.
        parameters: The blocks of parameters that it holds; disjoint. Where parameters are sharded, of those
            that are gathered it holds the content from a gather to a release.
        owned: Disjoint boxes of parameters, each owned by one of the ranks that hold it: together, over all
            ranks, every parameter that an operator reads, once. Where state is sharded, its parts.
        buffers: Buffers that it holds, whole.
        owned_buffers: Blocks of running statistics whose current content this rank has, each once.
        steps: In order.
    """

    rank: int
    parameters: tuple[Block, ...]
    owned: tuple[Block, ...]
    buffers: tuple[int, ...]
    owned_buffers: tuple[Block, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What a program does that a strategy does not say.

    Attributes:
        batch_norm: ``local``: each task normalizes with the statistics of what it has, as
            `DistributedDataParallel` does. ``synchronized``: with those of the whole batch.
        clip_gradients: Whether the norm of all gradients is computed before the update.
        bucket_bytes: Gradients of cells with the same holders are reduced together until they have this size.
        precision: ``stored``: arithmetic in the types of the graph. ``bfloat16``: what PyTorch's autocast
            computes in bfloat16 is, inside tasks; parameters, gradients, optimizer state, what goes between
            ranks and sums of partial results stay in the types of the graph.
        compression: How gradients travel that ranks sum: a name that `soaprl.cost.compression` knows, as
            `soaprl.runtime.compression` does it.
        sum_bytes: Partial results of this size or more that a group of ranks writes, and all of it reads, are
            summed by a collective; smaller ones are exchanged. `benchmarks/runtime-collectives.md` shows why.
        sum_ranks: The same of groups: two ranks send each other as much as they would for a collective.
        prefetch: Where parameters are sharded: how many operators with such parameters ahead they are
            gathered, as in `soaprl.simulator.pacing`.
    """

    batch_norm: BatchNorm = "local"
    clip_gradients: bool = False
    bucket_bytes: int = 25 * 2**20
    precision: Precision = "stored"
    compression: str = "none"
    sum_bytes: int = 2**21
    sum_ranks: int = 3
    prefetch: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The programs of all ranks.

    Attributes:
        model: The model's name.
        graph_fingerprint: Of the operator graph that the program belongs to.
        configs: The strategy: degrees and ranks of each operator.
        sharding: The strategy: what ranks that hold the same parameters keep parts of.
        micro_batches: The strategy: into how many parts the batch is cut.
        schedule: The strategy: the order of their passes.
        stages: The strategy: the stage of each operator.
        options: How it was compiled.
        ranks: One program for each rank.
    """

    model: str
    graph_fingerprint: str
    configs: tuple[OpConfig, ...]
    sharding: Sharding = Sharding.NONE
    micro_batches: int = 1
    schedule: Schedule = Schedule.NONE
    stages: tuple[int, ...] = ()
    options: CompileOptions = field(default_factory=CompileOptions)
    ranks: tuple[RankProgram, ...]

    @property
    def strategy(self) -> Strategy:
        """The strategy that was compiled."""
        return Strategy(self.configs, self.sharding, self.micro_batches, self.schedule, self.stages)

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return len(self.ranks)
