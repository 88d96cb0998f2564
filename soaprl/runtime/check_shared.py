"""Checks what ranks do together: they agree on every shared step, and none waits for ever.

No rank waits for ever, even if every send waited for its receive, because: (1) each rank's shared steps have
ascending ids; (2) all ranks of a shared step have it, and no others; (3) a step awaits only ids of shared
steps before it on the same rank. Take the smallest id that is never complete. Each of its ranks comes to it:
before it they have only shared steps with smaller ids, which are complete, and steps that await such. So it
becomes complete, which is a contradiction. Each exchange is complete when all its messages have arrived,
which needs that each send has a receive: (4).

A sum of gradients that travel in fewer bits is complete only when all of its ranks await it, since they send
the second round then. Therefore (5): ranks await such sums in the order of their ids, after all of their
shared steps but the norm of all gradients, which awaits the sums itself. The argument holds as before.
"""

from dataclasses import replace
from itertools import chain

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check_errors import wrong_step
from soaprl.runtime.exchanges import total_bytes
from soaprl.runtime.program import (
    Exchange,
    GatherParameters,
    Message,
    Program,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ScatterGradients,
    Shared,
    Step,
    SumPartials,
    waits_of,
)

_Place = tuple[int, int, Shared]


def check_shared(program: Program, graph: OperatorGraph) -> None:
    """Raises `ProgramError` unless (1) to (5) hold and all ranks agree on each shared step."""
    places: dict[int, list[_Place]] = {}
    for rank in program.ranks:
        _check_order(graph, rank.rank, rank.steps, places)
        if program.options.compression != "none":
            _check_sums_last(graph, rank.rank, rank.steps)
    for _, members in sorted(places.items()):
        _check_members(graph, members)
        if isinstance(members[0][2], Exchange):
            _check_messages(graph, members)
        else:
            _check_agreement(graph, members)


def _check_order(
    graph: OperatorGraph, rank: int, steps: tuple[Step, ...], places: dict[int, list[_Place]]
) -> None:
    """(1) and (3); enters the shared steps into `places`, by id."""
    last = -1
    for index, step in enumerate(steps):
        if isinstance(step, Shared):
            if step.id <= last:
                problem = f"expected an id above #{last}, the rank's last: ranks could wait for each other"
                raise wrong_step(graph, rank, index, step, problem)
            last = step.id
            places.setdefault(step.id, []).append((rank, index, step))
    posted, awaited = set[int](), set[int]()
    for index, step in enumerate(steps):
        for number in waits_of(step):
            if number not in posted:
                problem = f"it waits for #{number}, which the rank has not come to"
                raise wrong_step(graph, rank, index, step, problem)
            if number in awaited:
                problem = f"expected each wait once, found #{number} once more"
                raise wrong_step(graph, rank, index, step, problem)
            awaited.add(number)
        if isinstance(step, Shared):
            posted.add(step.id)


def _check_sums_last(graph: OperatorGraph, rank: int, steps: tuple[Step, ...]) -> None:
    """(5)."""
    sums = {step.id for step in steps if isinstance(step, ReduceGradients)}
    last = -1
    for index, step in enumerate(steps):
        for number in waits_of(step):
            if number not in sums:
                continue
            later = [s for s in steps[index:] if isinstance(s, Shared) and not isinstance(s, ReduceNorm)]
            if number < last or later:
                problem = f"it waits for the sum #{number} too early: others may wait for this rank elsewhere"
                raise wrong_step(graph, rank, index, step, problem)
            last = number


def _check_members(graph: OperatorGraph, members: list[_Place]) -> None:
    """(2), and that all have the same kind of step."""
    rank, index, step = members[0]
    ranks = tuple(r for r, _, _ in members)
    for other, place, found in members:
        if found.group != ranks:
            problem = f"its group is {found.group}, and the ranks that have #{step.id} are {ranks}"
            raise wrong_step(graph, other, place, found, problem)
        if type(found) is not type(step):
            problem = f"on rank {rank} #{step.id} is step {index}, of kind {step.kind!r}"
            raise wrong_step(graph, other, place, found, problem)


def _check_messages(graph: OperatorGraph, members: list[_Place]) -> None:
    """(4): each send has exactly one receive, with the same pieces in the same order and their bytes."""
    exchanges = {rank: (index, step) for rank, index, step in members if isinstance(step, Exchange)}
    first = members[0][2]
    assert isinstance(first, Exchange), "checked by the caller"
    for rank, (index, step) in exchanges.items():
        if (step.direction, step.operator, step.pattern) != (first.direction, first.operator, first.pattern):
            raise wrong_step(
                graph, rank, index, step, f"ranks differ in what they exchange: {first.direction}"
            )
        for side, messages in (("sends", step.sends), ("receives", step.receives)):
            peers = [message.peer for message in messages]
            if peers != sorted(set(peers)) or rank in peers:
                problem = f"it {side} to or from the peers {peers}; expected ascending ones, each once"
                raise wrong_step(graph, rank, index, step, problem)
        _check_sides(graph, exchanges, rank)


def _check_sides(graph: OperatorGraph, exchanges: dict[int, tuple[int, Exchange]], rank: int) -> None:
    index, step = exchanges[rank]
    pairs = [(m, "receives", "sends") for m in step.sends] + [(m, "sends", "receives") for m in step.receives]
    for message, theirs, ours in pairs:
        if message.peer not in exchanges:
            problem = f"it {ours} to or from rank {message.peer}, which has no part in it"
            raise wrong_step(graph, rank, index, step, problem)
        _, other = exchanges[message.peer]
        mirrored: tuple[Message, ...] = other.receives if theirs == "receives" else other.sends
        if replace(message, peer=rank) not in mirrored:
            problem = f"rank {message.peer} has nothing among its {theirs} that matches what it {ours}"
            raise wrong_step(graph, rank, index, step, problem)
        size = total_bytes(graph, message.pieces)
        if message.num_bytes != size or not message.pieces:
            problem = f"{len(message.pieces)} pieces of {size} bytes, found {message.num_bytes} bytes"
            raise wrong_step(graph, rank, index, step, f"expected {problem}")


def _check_agreement(graph: OperatorGraph, members: list[_Place]) -> None:
    """All ranks of a group do the same."""
    rank, _, first = members[0]
    for other, index, step in members[1:]:
        if _content(step) != _content(first):
            raise wrong_step(graph, other, index, step, f"rank {rank} has something else in #{first.id}")
    if isinstance(first, ScatterGradients | GatherParameters) and len(first.parts) != len(first.group):
        problem = f"expected parts for {len(first.group)} ranks, found them for {len(first.parts)}"
        raise wrong_step(graph, rank, members[0][1], first, problem)
    if isinstance(first, SumPartials):
        size = total_bytes(graph, first.pieces[:1])
        if len(first.pieces) != len(first.group) or first.num_bytes != size:
            problem = f"expected a piece of {size} bytes of each rank"
            raise wrong_step(graph, rank, members[0][1], first, problem)
    if isinstance(first, ReduceGradients | ScatterGradients | GatherParameters):
        cells = first.cells if isinstance(first, ReduceGradients) else tuple(chain(*first.parts))
        dtypes = {graph.tensors[cell.tensor].dtype for cell in cells}
        size = total_bytes(graph, cells)
        if len(dtypes) != 1 or size != first.num_bytes:
            problem = f"expected {size} bytes of one data type, found {first.num_bytes} of {sorted(dtypes)}"
            raise wrong_step(graph, rank, members[0][1], first, problem)


def _content(step: Shared) -> object:
    """What all ranks of a reduction have in common."""
    if isinstance(step, ReduceLoss | ReduceNorm):
        return step.group
    return step
