"""Ways to spoil a program. Each gives None where the program has nothing of the kind."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from soaprl.runtime.program import (
    Backward,
    Block,
    Exchange,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    Message,
    Piece,
    Program,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    Shared,
    Step,
    SumPartials,
    Update,
    UpdateBuffers,
)

Place = tuple[int, int]
Mutation = Callable[[Program, random.Random], Program | None]
SHARED = get_args(Shared)
WAITING = (Forward, Backward, ReduceLoss, ReduceNorm, ReleaseParameters, Update)


def places(program: Program, *kinds: type, where: Callable[[Step], bool] = lambda step: True) -> list[Place]:
    """Rank and index of all steps of some kinds."""
    return [
        (rank.rank, index)
        for rank in program.ranks
        for index, step in enumerate(rank.steps)
        if isinstance(step, kinds) and where(step)
    ]


def with_steps(program: Program, rank: int, steps: list[Step]) -> Program:
    changed = replace(program.ranks[rank], steps=tuple(steps))
    return replace(program, ranks=(*program.ranks[:rank], changed, *program.ranks[rank + 1 :]))


def with_step(program: Program, place: Place, *new: Step) -> Program:
    """The program with other steps, or none, in one place."""
    rank, index = place
    steps = program.ranks[rank].steps
    return with_steps(program, rank, [*steps[:index], *new, *steps[index + 1 :]])


def step_at(program: Program, place: Place) -> Step:
    return program.ranks[place[0]].steps[place[1]]


def dropped(*kinds: type) -> Mutation:
    def mutate(program: Program, rng: random.Random) -> Program | None:
        found = places(program, *kinds)
        return with_step(program, rng.choice(found)) if found else None

    return mutate


def doubled(*kinds: type) -> Mutation:
    def mutate(program: Program, rng: random.Random) -> Program | None:
        found = places(program, *kinds)
        if not found:
            return None
        place = rng.choice(found)
        return with_step(program, place, step_at(program, place), step_at(program, place))

    return mutate


def swapped_shared(program: Program, rng: random.Random) -> Program | None:
    rank = rng.choice(program.ranks)
    shared = [i for i, step in enumerate(rank.steps) if isinstance(step, SHARED)]
    if len(shared) < 2:
        return None
    k = rng.randrange(len(shared) - 1)
    steps = list(rank.steps)
    steps[shared[k]], steps[shared[k + 1]] = steps[shared[k + 1]], steps[shared[k]]
    return with_steps(program, rank.rank, steps)


def reversed_passes(program: Program, rng: random.Random) -> Program | None:
    """A backward pass before its forward pass."""
    found = places(program, Backward)
    if not found:
        return None
    rank, index = rng.choice(found)
    steps = list(program.ranks[rank].steps)
    back = steps.pop(index)
    return with_steps(program, rank, [back, *steps])


def forgotten_wait(program: Program, rng: random.Random) -> Program | None:
    found = places(program, *WAITING, where=lambda step: bool(step.waits))
    if not found:
        return None
    place = rng.choice(found)
    step = step_at(program, place)
    lost = rng.choice(step.waits)
    return with_step(program, place, replace(step, waits=tuple(w for w in step.waits if w != lost)))


def changed_messages(
    change: Callable[[Message, random.Random], Message | None], *, mirrored: bool
) -> Mutation:
    """Changes one message: on the sending side alone, or on both sides."""

    def mutate(program: Program, rng: random.Random) -> Program | None:
        found = places(program, Exchange, where=lambda step: bool(step.sends))
        if not found:
            return None
        place = rng.choice(found)
        step = step_at(program, place)
        message = rng.choice(step.sends)
        new = change(message, rng)
        if new is not None and new == message:
            return None
        spoiled = with_step(program, place, replace(step, sends=_exchanged(step.sends, message, new)))
        if not mirrored:
            return spoiled
        other = [
            p for p in places(spoiled, Exchange, where=lambda s: s.id == step.id) if p[0] == message.peer
        ]
        theirs = step_at(spoiled, other[0])
        old = replace(message, peer=place[0])
        back = None if new is None else replace(new, peer=place[0])
        return with_step(spoiled, other[0], replace(theirs, receives=_exchanged(theirs.receives, old, back)))

    return mutate


def _exchanged(messages: tuple[Message, ...], old: Message, new: Message | None) -> tuple[Message, ...]:
    return tuple(m for m in (new if m == old else m for m in messages) if m is not None)


def no_message(message: Message, rng: random.Random) -> Message | None:
    return None


def fewer_pieces(message: Message, rng: random.Random) -> Message | None:
    pieces = list(message.pieces)
    gone = pieces.pop(rng.randrange(len(pieces)))
    size = message.num_bytes * _elements(pieces) // _elements([*pieces, gone])
    return replace(message, pieces=tuple(pieces), num_bytes=size) if pieces else None


def other_order(message: Message, rng: random.Random) -> Message | None:
    return replace(message, pieces=message.pieces[::-1])


def other_box(message: Message, rng: random.Random) -> Message | None:
    return replace(message, pieces=(_moved(message.pieces[0], rng), *message.pieces[1:]))


def other_part(message: Message, rng: random.Random) -> Message | None:
    first = message.pieces[0]
    return replace(message, pieces=(replace(first, part=first.part + 1), *message.pieces[1:]))


def other_peer(message: Message, rng: random.Random) -> Message | None:
    return replace(message, peer=message.peer + 1)


def _elements(pieces: list[Piece]) -> int:
    total = 0
    for piece in pieces:
        count = 1
        for start, stop in piece.box:
            count *= stop - start
        total += count
    return total


def _moved(piece: Piece | Block, rng: random.Random) -> Piece | Block:
    """The same number of elements, elsewhere."""
    if not piece.box:
        return replace(piece, part=piece.part + 1) if isinstance(piece, Piece) else piece
    d = rng.randrange(len(piece.box))
    box = tuple((lo + 1, hi + 1) if k == d else (lo, hi) for k, (lo, hi) in enumerate(piece.box))
    return replace(piece, box=box)


def wrong_read(program: Program, rng: random.Random) -> Program | None:
    found = places(program, Forward, where=lambda step: any(read.pieces for read in step.reads))
    if not found:
        return None
    place = rng.choice(found)
    step = step_at(program, place)
    k = rng.choice([i for i, read in enumerate(step.reads) if read.pieces])
    pieces = list(step.reads[k].pieces)
    if rng.random() < 0.5:
        pieces[0] = _moved(pieces[0], rng)
    else:
        pieces.pop()
    reads = (*step.reads[:k], replace(step.reads[k], pieces=tuple(pieces)), *step.reads[k + 1 :])
    return with_step(program, place, replace(step, reads=reads))


def wrong_gradient_flag(program: Program, rng: random.Random) -> Program | None:
    found = places(program, Forward, where=lambda step: any(read.pieces for read in step.reads))
    if not found:
        return None
    place = rng.choice(found)
    step = step_at(program, place)
    read = next(read for read in step.reads if read.pieces)
    reads = tuple(replace(r, gradient=not r.gradient) if r is read else r for r in step.reads)
    return with_step(program, place, replace(step, reads=reads))


def wrong_write(program: Program, rng: random.Random) -> Program | None:
    found = places(program, Forward, where=lambda step: bool(step.writes and step.writes[0].box))
    if not found:
        return None
    place = rng.choice(found)
    step = step_at(program, place)
    return with_step(program, place, replace(step, writes=(_moved(step.writes[0], rng), *step.writes[1:])))


def bucket_without_a_cell(program: Program, rng: random.Random) -> Program | None:
    """On all ranks: the gradient of the cell is never reduced."""
    found = places(program, ReduceGradients)
    if not found:
        return None
    step = step_at(program, rng.choice(found))
    cells = step.cells[1:]
    share = _elements(list(cells)) / _elements(list(step.cells))
    for place in reversed(places(program, ReduceGradients, where=lambda s: s.id == step.id)):
        new = replace(step, cells=cells, num_bytes=round(step.num_bytes * share))
        program = with_step(program, place, *([new] if cells else []))
        if not cells:
            program = _without_wait(program, place[0], step.id)
    return program


def _without_wait(program: Program, rank: int, number: int) -> Program:
    steps = [
        replace(s, waits=tuple(w for w in s.waits if w != number))
        if isinstance(s, Update | ReduceNorm | Forward | Backward | ReleaseParameters)
        else s
        for s in program.ranks[rank].steps
    ]
    return with_steps(program, rank, steps)


def bucket_without_a_holder(program: Program, rng: random.Random) -> Program | None:
    found = places(program, ReduceGradients)
    if not found:
        return None
    step = step_at(program, rng.choice(found))
    gone = rng.choice(step.group)
    for place in reversed(places(program, ReduceGradients, where=lambda s: s.id == step.id)):
        group = tuple(r for r in step.group if r != gone)
        program = with_step(program, place, *([replace(step, group=group)] if place[0] != gone else []))
        if place[0] == gone:
            program = _without_wait(program, gone, step.id)
    return program


def early_reduction(program: Program, rng: random.Random) -> Program | None:
    """Reduces before the contributions of one rank are there."""
    found = places(program, ReduceGradients, ScatterGradients)
    # What a micro-batch lacks when it is scattered, the next one has.
    if not found or program.micro_batches > 1:
        return None
    rank, index = rng.choice(found)
    steps = list(program.ranks[rank].steps)
    first = next((i for i, s in enumerate(steps) if isinstance(s, Backward)), None)
    if first is None or first > index:
        return None
    moved = steps.pop(index)
    return with_steps(program, rank, [*steps[:first], moved, *steps[first:]])


def lost_parameter(program: Program, rng: random.Random) -> Program | None:
    found = [rank for rank in program.ranks if rank.parameters]
    if not found:
        return None
    rank = rng.choice(found)
    changed = replace(rank, parameters=rank.parameters[1:])
    return replace(program, ranks=tuple(changed if r is rank else r for r in program.ranks))


def unowned_parameter(program: Program, rng: random.Random) -> Program | None:
    found = [rank for rank in program.ranks if rank.owned]
    if not found:
        return None
    rank = rng.choice(found)
    changed = replace(rank, owned=rank.owned[:-1])
    return replace(program, ranks=tuple(changed if r is rank else r for r in program.ranks))


def update_of_less(program: Program, rng: random.Random) -> Program | None:
    found = places(program, Update)
    if not found:
        return None
    place = rng.choice(found)
    step = step_at(program, place)
    return with_step(program, place, replace(step, parameters=step.parameters[1:]))


def everywhere(*kinds: type) -> Mutation:
    """Drops a shared step on all of its ranks, and what waits for it."""

    def mutate(program: Program, rng: random.Random) -> Program | None:
        found = places(program, *kinds)
        if not found:
            return None
        number = step_at(program, rng.choice(found)).id
        for place in reversed(places(program, *kinds, where=lambda s: s.id == number)):
            program = _without_wait(with_step(program, place), place[0], number)
        return program

    return mutate


def changed_parts(kind: type, change: Callable[[list, random.Random], bool]) -> Mutation:
    """Other parts of a shared step on all of its ranks."""

    def mutate(program: Program, rng: random.Random) -> Program | None:
        found = places(program, kind)
        if not found:
            return None
        step = step_at(program, rng.choice(found))
        parts = [list(own) for own in step.parts]
        if not change(parts, rng):
            return None
        new = replace(step, parts=tuple(tuple(own) for own in parts))
        for place in places(program, kind, where=lambda s: s.id == step.id):
            program = with_step(program, place, new)
        return program

    return mutate


def parts_of_another(parts: list, rng: random.Random) -> bool:
    """Each rank has the parts of its neighbour."""
    parts.append(parts.pop(0))
    return parts[0] != parts[-1]


def moved_part(parts: list, rng: random.Random) -> bool:
    own = rng.choice([own for own in parts if own])
    own[0] = _moved(own[0], rng)
    return bool(own[0].box)


def early_gather(program: Program, rng: random.Random) -> Program | None:
    """Gathers what has not been updated yet."""
    found = places(program, Update)
    ids = [s.id for s in _steps(program, GatherParameters)]
    if not found or not ids or program.sharding.level == 3:
        return None
    rank, index = rng.choice(found)
    steps = list(program.ranks[rank].steps)
    late = next((i for i in range(index, len(steps)) if isinstance(steps[i], GatherParameters)), None)
    if late is None:
        return None
    steps.insert(index, steps.pop(late))
    return with_steps(program, rank, steps)


def early_release(program: Program, rng: random.Random) -> Program | None:
    """Releases before the passes that read."""
    found = places(program, ReleaseParameters)
    if not found:
        return None
    rank, index = rng.choice(found)
    steps = list(program.ranks[rank].steps)
    step = steps.pop(index)
    return with_steps(program, rank, [replace(step, waits=()), *steps])


def other_partials(program: Program, rng: random.Random) -> Program | None:
    """On all ranks: the parts in another order."""
    found = places(program, SumPartials)
    if not found:
        return None
    step = step_at(program, rng.choice(found))
    for place in places(program, SumPartials, where=lambda s: s.id == step.id):
        program = with_step(program, place, replace(step, pieces=step.pieces[::-1]))
    return program


def _steps(program: Program, kind: type) -> list[Step]:
    return [step_at(program, place) for place in places(program, kind)]


MUTATIONS: dict[str, Mutation] = {
    "dropped exchange": dropped(Exchange),
    "dropped forward": dropped(Forward),
    "dropped backward": dropped(Backward),
    "dropped inputs": dropped(LoadInputs),
    "dropped constants": dropped(MakeConstants),
    "dropped sum": dropped(SumPartials),
    "sum dropped by all": everywhere(SumPartials),
    "sum of other parts": other_partials,
    "dropped loss": dropped(ReduceLoss),
    "dropped reduction": dropped(ReduceGradients),
    "dropped scatter": dropped(ScatterGradients),
    "scatter dropped by all": everywhere(ScatterGradients),
    "scatter to others": changed_parts(ScatterGradients, parts_of_another),
    "scatter of another part": changed_parts(ScatterGradients, moved_part),
    "dropped gather": dropped(GatherParameters),
    "gather dropped by all": everywhere(GatherParameters),
    "gather from others": changed_parts(GatherParameters, parts_of_another),
    "gather of another part": changed_parts(GatherParameters, moved_part),
    "gather too early": early_gather,
    "dropped release": dropped(ReleaseParameters),
    "release too early": early_release,
    "dropped statistics": dropped(ReduceStatistics),
    "dropped norm": dropped(ReduceNorm),
    "dropped running statistics": dropped(UpdateBuffers),
    "dropped update": dropped(Update),
    "doubled task": doubled(Forward, Backward),
    "doubled shared step": doubled(*SHARED),
    "doubled update": doubled(Update),
    "swapped shared steps": swapped_shared,
    "backward before forward": reversed_passes,
    "forgotten wait": forgotten_wait,
    "dropped send": changed_messages(no_message, mirrored=False),
    "dropped send and receive": changed_messages(no_message, mirrored=True),
    "send of fewer pieces": changed_messages(fewer_pieces, mirrored=False),
    "message of fewer pieces": changed_messages(fewer_pieces, mirrored=True),
    "send in another order": changed_messages(other_order, mirrored=False),
    "send of another box": changed_messages(other_box, mirrored=False),
    "message of another box": changed_messages(other_box, mirrored=True),
    "message of another part": changed_messages(other_part, mirrored=True),
    "send to another peer": changed_messages(other_peer, mirrored=False),
    "wrong read": wrong_read,
    "wrong gradient flag": wrong_gradient_flag,
    "wrong write": wrong_write,
    "bucket without a cell": bucket_without_a_cell,
    "bucket without a holder": bucket_without_a_holder,
    "reduction too early": early_reduction,
    "lost parameter": lost_parameter,
    "unowned parameter": unowned_parameter,
    "update of less": update_of_less,
}
