"""What the runtime adds to the work of tasks: fitted from runs of a few strategies.

A process runs for longer in an iteration than its tasks take by themselves: it has work to do in every
iteration and for every pass of a task, hands messages to the library, and packs, unpacks and copies their
bytes; some of it in threads of the library. With p the passes of tasks of a rank, m the messages that it
sends and receives, n the bytes that go out and come in, c those of them that are a collective's (all as the
simulator counts them, implemented in `loads`: the runtime packs some together), b the predicted seconds of
its tasks and updates, and r those that its threads ran,

    r - b = iteration + task * p + message * m + byte * n + reduced * c

in the least squares, relative to r, of all ranks of all strategies, none of the five below 0. Implemented in
`fit_overheads`. Other programs on the machine matter little: they take the processor away, which is not
counted, and caches, which is.

Threads of the library run on other processors where there are some. So they only count where there are no
more processors than ranks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from soaprl.cluster.cluster import Overheads
from soaprl.cluster.tables import FloatArray
from soaprl.cost.profiled.fitting import not_negative
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import simulate
from soaprl.simulator.timeline import TaskKind
from soaprl.strategy.strategy import Strategy

# Bytes are counted as the time that they take; far from the shortest and the longest that can be simulated.
_S_PER_BYTE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one rank does in an iteration beside the work of tasks.

    Attributes:
        num_passes: Forward and backward passes of its tasks.
        num_messages: Transfers that it sends and receives, as the simulator has them: one for each piece of
            an activation.
        num_bytes: Bytes of these transfers, and those that rings move for the collectives, out and in.
        num_reduced_bytes: The latter alone.
    """

    num_passes: int
    num_messages: int
    num_bytes: float
    num_reduced_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One rank in an iteration.

    Attributes:
        traffic: What it does beside the work of tasks.
        predicted_s: Seconds that its tasks and updates take by themselves.
        ran_s: Seconds that its threads ran.
    """

    traffic: Traffic
    predicted_s: float
    ran_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the runtime takes.

    Attributes:
        iteration_s: See `soaprl.cluster.cluster.Overheads`.
        task_s: Likewise.
        message_s: Likewise.
        message_s_per_byte: Likewise, with what it takes while bytes are on their way.
        reduced_s_per_byte: Likewise.
        error_before: Median relative error of what ranks run without them.
        error_after: And with them.
    """

    iteration_s: float
    task_s: float
    message_s: float
    message_s_per_byte: float
    reduced_s_per_byte: float
    error_before: float
    error_after: float

    def entered(self, overheads: Overheads, provenance: str) -> Overheads:
        """The overheads of a cluster with these in place of what they had.

        What was measured with the links, of bytes that are on their way, is part of what was fitted here; and
        no more than that, which runs show and full links may exceed. Where runs show nothing of bytes, it
        stays.

        Args:
            overheads: As they were measured with the links.
            provenance: Where these come from.
        """
        shown_s_per_byte = self.message_s_per_byte or overheads.carry_s_per_byte
        carried_s_per_byte = min(overheads.carry_s_per_byte, shown_s_per_byte)
        return replace(
            overheads,
            task_s=self.task_s,
            iteration_s=self.iteration_s,
            message_s=self.message_s,
            message_s_per_byte=shown_s_per_byte - carried_s_per_byte,
            carry_s_per_byte=carried_s_per_byte,
            reduced_s_per_byte=self.reduced_s_per_byte,
            provenance=provenance,
        )


def loads(
    problem: Problem, strategies: Iterable[Strategy], ran_s: Iterable[Sequence[float]]
) -> Iterator[Load]:
    """What each rank did under each strategy: messages and bytes as the simulator will charge them.

    Args:
        problem: What was run; its overheads do not matter.
        strategies: Under which strategies.
        ran_s: For each of them, the seconds that the threads of each rank ran.
    """
    bare = Simulator(_with(problem, Overheads()))
    counting = Simulator(_with(problem, Overheads(message_s=1.0)))
    weighing = Simulator(_with(problem, Overheads(message_s_per_byte=_S_PER_BYTE)))
    reducing = Simulator(_with(problem, Overheads(reduced_s_per_byte=_S_PER_BYTE)))
    for strategy, ran in zip(strategies, ran_s, strict=True):
        alone = simulate(bare.problem, strategy, simulator=bare)
        count = simulate(counting.problem, strategy, simulator=counting).device_message_s
        weight = simulate(weighing.problem, strategy, simulator=weighing).device_message_s
        reduced = simulate(reducing.problem, strategy, simulator=reducing).device_message_s
        passes = (alone.tasks.kind == TaskKind.FORWARD) | (alone.tasks.kind == TaskKind.BACKWARD)
        num_passes = np.bincount(alone.tasks.source[passes], minlength=len(ran))
        for rank, seconds in enumerate(ran):
            done = Traffic(
                num_passes=int(num_passes[rank]),
                num_messages=round(float(count[rank])),
                num_bytes=float(weight[rank]) / _S_PER_BYTE,
                num_reduced_bytes=float(reduced[rank]) / _S_PER_BYTE,
            )
            yield Load(traffic=done, predicted_s=float(alone.device_busy_s[rank]), ran_s=seconds)


def _with(problem: Problem, overheads: Overheads) -> Problem:
    return replace(problem, cluster=replace(problem.cluster, overheads=overheads))


def fit_overheads(loads: Sequence[Load]) -> Fit:
    """The overheads that explain best what ranks ran; ranks that ran nothing do not count."""
    kept = [load for load in loads if load.ran_s > 0]
    features = np.array([_features(load.traffic) for load in kept]).reshape(-1, 5)
    ran = np.array([load.ran_s for load in kept])
    added = ran - np.array([load.predicted_s for load in kept])
    fitted = not_negative(features / ran[:, None], added / ran)
    return Fit(
        iteration_s=float(fitted[0]),
        task_s=float(fitted[1]),
        message_s=float(fitted[2]),
        message_s_per_byte=float(fitted[3]),
        reduced_s_per_byte=float(fitted[4]),
        error_before=_error(kept, np.zeros(len(kept))),
        error_after=_error(kept, features @ fitted),
    )


def _features(done: Traffic) -> list[float]:
    return [1.0, done.num_passes, done.num_messages, done.num_bytes, done.num_reduced_bytes]


def _error(loads: Sequence[Load], added_s: FloatArray) -> float:
    """Median relative error; ranks that compute nothing have none."""
    errors = [
        abs((load.predicted_s + added) / load.ran_s - 1)
        for load, added in zip(loads, added_s.tolist(), strict=True)
        if load.predicted_s > 0
    ]
    return median(errors) if errors else 0.0
