"""What the runtime adds to the work of tasks: fitted from runs of a few strategies.

A rank's thread runs for longer in an iteration than its tasks take by themselves: it has work to do in every
iteration, hands messages to the library, and packs and unpacks their bytes. With m the messages that a rank
sends and receives and the sums of gradients that it takes part in, n the bytes that go into and come out of
them, b the predicted seconds of its tasks and updates, and r those that its thread ran,

    r - b = iteration + message * m + byte * n

in the least squares of all ranks of all strategies, none of the three below 0. Implemented in
`fit_overheads`. Other programs on the machine matter little: they take the processor away, which is not
counted, and caches, which is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import median

import numpy as np

from soaprl.cluster.tables import FloatArray
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.program import (
    Block,
    Exchange,
    GatherParameters,
    Piece,
    Program,
    RankProgram,
    ReduceGradients,
    ScatterGradients,
    SumPartials,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one rank exchanges in an iteration.

    Attributes:
        num_messages: Messages that it sends and receives, and twice the sums that it takes part in.
        num_bytes: Bytes of these messages, and twice those of the sums.
    """

    num_messages: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One rank in an iteration.

    Attributes:
        traffic: What it exchanges.
        predicted_s: Seconds that its device computes by the simulator.
        ran_s: Seconds that its thread ran.
    """

    traffic: Traffic
    predicted_s: float
    ran_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What the runtime takes of a rank's thread.

    Attributes:
        iteration_s: Seconds of every iteration.
        message_s: Seconds of a message, on either side.
        s_per_byte: Seconds of a byte, on either side.
        error_before: Median relative error of the predicted seconds without them.
        error_after: And with them.
    """

    iteration_s: float
    message_s: float
    s_per_byte: float
    error_before: float
    error_after: float


def traffic(graph: OperatorGraph, program: Program) -> tuple[Traffic, ...]:
    """What each rank exchanges in an iteration."""
    return tuple(_traffic(graph, rank) for rank in program.ranks)


def _traffic(graph: OperatorGraph, rank: RankProgram) -> Traffic:
    def size(parts: Sequence[Piece] | Sequence[Block]) -> int:
        return sum(num_elements(part.box) * graph.tensors[part.tensor].itemsize for part in parts)

    messages = [
        message.pieces
        for step in rank.steps
        if isinstance(step, Exchange)
        for message in (*step.sends, *step.receives)
    ]
    sums: list[Sequence[Piece] | Sequence[Block]] = []
    for step in rank.steps:
        if isinstance(step, ReduceGradients) and len(step.group) > 1:
            sums.append(step.cells)
        elif isinstance(step, SumPartials):
            sums.append(step.pieces[:1])
    # Each is half of a sum: gradients are sent and parts received, or parts sent and the whole received.
    halves = [
        tuple(chain(*step.parts))
        for step in rank.steps
        if isinstance(step, ScatterGradients | GatherParameters)
    ]
    return Traffic(
        num_messages=len(messages) + 2 * len(sums) + len(halves),
        num_bytes=sum(map(size, messages)) + 2 * sum(map(size, sums)) + sum(map(size, halves)),
    )


def fit_overheads(loads: Sequence[Load]) -> Overheads:
    """The overheads that explain best what ranks ran; ranks that compute nothing count as well."""
    features = np.array([[1.0, load.traffic.num_messages, load.traffic.num_bytes] for load in loads])
    added = np.array([load.ran_s - load.predicted_s for load in loads])
    fitted = _not_negative(features, added)
    overhead_s = features @ fitted
    return Overheads(
        iteration_s=float(fitted[0]),
        message_s=float(fitted[1]),
        s_per_byte=float(fitted[2]),
        error_before=_error(loads, np.zeros(len(loads))),
        error_after=_error(loads, overhead_s),
    )


def _not_negative(features: FloatArray, target: FloatArray) -> FloatArray:
    """The least-squares coefficients of which none is below 0: the best of all choices of those above 0."""
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    count = features.shape[1]
    best, best_rest = np.zeros(count), float(target @ target)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            columns = (features / scale)[:, chosen]
            found = np.linalg.lstsq(columns, target, rcond=None)[0]
            rest = float(np.square(columns @ found - target).sum())
            if (found >= 0).all() and rest < best_rest:
                best, best_rest = np.zeros(count), rest
                best[list(chosen)] = found
    return np.asarray(best / scale, np.float64)


def _error(loads: Sequence[Load], added_s: FloatArray) -> float:
    """Median relative error; ranks that compute nothing have none."""
    errors = [
        abs((load.predicted_s + added) / load.ran_s - 1)
        for load, added in zip(loads, added_s.tolist(), strict=True)
        if load.predicted_s > 0 and load.ran_s > 0
    ]
    return median(errors) if errors else 0.0
