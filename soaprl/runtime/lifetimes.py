"""When what a rank holds is needed for the last time."""

from soaprl.runtime.program import Exchange, Forward, Piece, RankProgram, ReduceLoss, Step, SumPartials


def last_uses(program: RankProgram) -> tuple[tuple[Piece, ...], ...]:
    """For each step, the pieces whose content no later step reads.

    Gradients need no such list: each is taken once, by the backward pass of its task or by the message that
    carries it away.
    """
    written: dict[tuple[int, int], Piece] = {}
    last: dict[Piece, int] = {}
    for index, step in enumerate(program.steps):
        if isinstance(step, Forward):
            written.update({(piece.tensor, piece.part): piece for piece in step.writes})
        for piece in _touched(step, program.rank):
            # What is sent is a box of what was written.
            last[written.get((piece.tensor, piece.part), piece)] = index
    dropped: list[list[Piece]] = [[] for _ in program.steps]
    for piece, index in last.items():
        dropped[index].append(piece)
    return tuple(tuple(pieces) for pieces in dropped)


def _touched(step: Step, rank: int) -> list[Piece]:
    """The pieces whose content a step of a rank writes or reads; what comes is entered when it is awaited."""
    if isinstance(step, Forward):
        return [*(piece for read in step.reads for piece in read.pieces), *step.writes]
    if isinstance(step, Exchange) and step.direction == "forward":
        return [piece for message in step.sends for piece in message.pieces]
    if isinstance(step, SumPartials) and step.direction == "forward":
        return [step.pieces[step.group.index(rank)]]
    if isinstance(step, ReduceLoss):
        return list(step.pieces)
    return []
