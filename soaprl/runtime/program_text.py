"""Programs as text: what each rank does, and how many bytes go where."""

from collections import Counter
from collections.abc import Iterable

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.micro_batches import unrolled
from soaprl.runtime.program import (
    Backward,
    Block,
    Box,
    Exchange,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    Message,
    Piece,
    Program,
    RankProgram,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    Step,
    SumPartials,
    Update,
    UpdateBuffers,
)

_REDUCED = (ReduceGradients, ScatterGradients, SumPartials)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def program_text(program: Program, graph: OperatorGraph, *, ranks: Iterable[int] | None = None) -> str:
    """A table for each rank, and the totals of all.

    Args:
        program: The program.
        graph: The graph it was compiled for.
        ranks: Whose steps to list; all by default.
    """
    chosen = range(program.num_ranks) if ranks is None else ranks
    steps_graph = unrolled(graph, program.strategy).graph
    parts = [_rank_text(program.ranks[rank], steps_graph) for rank in chosen]
    return "\n\n".join([*parts, totals_text(program, graph)]) + "\n"


def totals_text(program: Program, graph: OperatorGraph) -> str:
    """What each rank holds and sends in one iteration, one line each, and the bytes from each to each."""
    rows = [("rank", "steps", "tasks", "parameters", "sends", "receives", "reduces", "gathers")]
    sent: Counter[tuple[int, int]] = Counter()
    for rank in program.ranks:
        exchanges = [s for s in rank.steps if isinstance(s, Exchange)]
        for step in exchanges:
            sent.update({(rank.rank, m.peer): m.num_bytes for m in step.sends})
        rows.append(
            (
                str(rank.rank),
                str(len(rank.steps)),
                str(sum(isinstance(s, Forward) and s.stage == 0 for s in rank.steps)),
                _size(_bytes(graph, rank.parameters)),
                _size(sum(m.num_bytes for s in exchanges for m in s.sends)),
                _size(sum(m.num_bytes for s in exchanges for m in s.receives)),
                _size(sum(s.num_bytes for s in rank.steps if isinstance(s, _REDUCED))),
                _size(sum(s.num_bytes for s in rank.steps if isinstance(s, GatherParameters))),
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    routes = [f"  {a} -> {b}: {_size(size)}" for (a, b), size in sorted(sent.items())]
    how = program.options.compression
    notes = [] if how == "none" else [f"what is reduced travels as {how}"]
    return "\n".join([*lines, *notes, *(["bytes from rank to rank:", *routes] if routes else [])])


def _rank_text(rank: RankProgram, graph: OperatorGraph) -> str:
    head = f"rank {rank.rank}: holds {_size(_bytes(graph, rank.parameters))} of parameters"
    return "\n".join([head, *(f"  {n:4d}  {step_text(step, graph)}" for n, step in enumerate(rank.steps))])


def step_text(step: Step, graph: OperatorGraph) -> str:
    """One step in one line."""
    match step:
        case LoadInputs():
            return f"load {_boxes(graph, step.blocks)}"
        case MakeConstants():
            return f"make constants {', '.join(graph.constants[c].name for c in step.calls)}"
        case Forward():
            what = f" -> {_boxes(graph, step.writes)}" if step.writes else f" stage {step.stage}"
            return f"forward {_task(step, graph)}{what}{_waits(step.waits)}"
        case Backward():
            stage = f" stage {step.stage}" if step.stage else ""
            return f"backward {_task(step, graph)}{stage}{_waits(step.waits)}"
        case Exchange():
            return f"#{step.id} {_exchange(step, graph)}"
        case SumPartials():
            what = "outputs" if step.direction == "forward" else "gradients"
            name, size = graph.operators[step.operator].name, _size(step.num_bytes)
            boxes = _boxes(graph, step.pieces[:1])
            return f"#{step.id} sum {what} of {name} over {_ranks(step.group)}: {boxes} {size}"
        case ReduceStatistics():
            what = f"{step.direction} {graph.operators[step.operator].name} stage {step.stage}"
            return f"#{step.id} reduce statistics of {what} over {_ranks(step.group)}"
        case ReduceLoss():
            which = f" of micro-batch {step.micro_batch}" if step.weight != 1 or step.micro_batch else ""
            return f"#{step.id} reduce loss{which} over {_ranks(step.group)}{_waits(step.waits)}"
        case ReduceGradients():
            what = f"{len(step.cells)} cells, {_size(step.num_bytes)}"
            return f"#{step.id} reduce gradients over {_ranks(step.group)}: {what}"
        case ScatterGradients():
            what = f"{sum(map(len, step.parts))} parts, {_size(step.num_bytes)}"
            return f"#{step.id} reduce and scatter gradients over {_ranks(step.group)}: {what}"
        case GatherParameters():
            what = f"{sum(map(len, step.parts))} parts, {_size(step.num_bytes)}"
            return f"#{step.id} gather parameters over {_ranks(step.group)}: {what}"
        case ReleaseParameters():
            return f"release {_boxes(graph, step.blocks)}{_waits(step.waits)}"
        case ReduceNorm():
            return f"#{step.id} reduce norm over {_ranks(step.group)}{_waits(step.waits)}"
        case UpdateBuffers():
            names = ", ".join(graph.tensors[t].name for t in step.buffers)
            return f"#{step.id} update {names} over {_ranks(step.group)}"
        case Update():
            return f"update {_size(_bytes(graph, step.parameters))} of parameters{_waits(step.waits)}"


def _task(step: Forward | Backward, graph: OperatorGraph) -> str:
    return f"{graph.operators[step.operator].name}[{step.part}]"


def _exchange(step: Exchange, graph: OperatorGraph) -> str:
    pattern = "" if step.pattern == "point_to_point" else f" ({step.pattern})"
    sides = [_message(m, graph, "to") for m in step.sends] + [
        _message(m, graph, "from") for m in step.receives
    ]
    what = "outputs" if step.direction == "forward" else "gradients"
    return f"exchange {what} of {graph.operators[step.operator].name}{pattern}: {'; '.join(sides)}"


def _message(message: Message, graph: OperatorGraph, side: str) -> str:
    return f"{side} {message.peer} {_boxes(graph, message.pieces)} {_size(message.num_bytes)}"


def _boxes(graph: OperatorGraph, boxes: tuple[Piece | Block, ...]) -> str:
    shown = [f"{graph.tensors[b.tensor].name}{_box(b.box)}" for b in boxes[:3]]
    return ", ".join(shown) + (f" and {len(boxes) - 3} more" if len(boxes) > 3 else "")


def _box(box: Box) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"


def _waits(ids: tuple[int, ...]) -> str:
    return f"  after {', '.join(f'#{number}' for number in ids)}" if ids else ""


def _ranks(group: tuple[int, ...]) -> str:
    if len(group) > 2 and group == tuple(range(group[0], group[-1] + 1)):
        return f"{group[0]}-{group[-1]}"
    return ",".join(str(rank) for rank in group)


def _bytes(graph: OperatorGraph, blocks: Iterable[Block]) -> int:
    return sum(num_elements(b.box) * graph.tensors[b.tensor].itemsize for b in blocks)


def _size(num_bytes: float) -> str:
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.0f} {_UNITS[unit]}" if unit == 0 else f"{num_bytes:.1f} {_UNITS[unit]}"
