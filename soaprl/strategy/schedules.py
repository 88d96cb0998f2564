"""In which order a pipeline's stages do the passes of the micro-batches.

GPipe (Huang et al., arXiv 1811.06965): every stage does all forward passes, then all backward passes. Every
micro-batch's activations are kept until then.

1F1B (PipeDream-Flush, Narayanan et al., arXiv 2006.09503; Megatron-LM, arXiv 2104.04473): of p stages, stage
s does p - 1 - s forward passes, then by turns a forward and a backward pass, then the rest of the backward
passes. It keeps the activations of at most p - s micro-batches. With one stage it is gradient accumulation.

Both take m + p - 1 times a stage's forward and backward pass for m micro-batches, if stages take the same
time and transfers none: devices wait for (p - 1) / (m + p - 1) of the iteration (the bubble).
"""

from enum import StrEnum
from typing import NamedTuple


class Schedule(StrEnum):
    """The order of passes.

    With ``none`` passes are done as they become ready, like everything else, and memory is that of the
    program order in which all forward passes come first.
    """

    NONE = "none"
    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"


class Slot(NamedTuple):
    """One pass of one micro-batch through one stage."""

    stage: int
    micro_batch: int
    backward: bool


def stage_slots(schedule: Schedule, stage: int, num_stages: int, num_micro_batches: int) -> tuple[Slot, ...]:
    """The passes of one stage in their order."""
    m = num_micro_batches
    first = min(num_stages - 1 - stage, m) if schedule is Schedule.ONE_F_ONE_B else m
    slots = [Slot(stage, i, False) for i in range(first)]
    for i in range(first, m):
        slots += [Slot(stage, i, False), Slot(stage, i - first, True)]
    slots += [Slot(stage, i, True) for i in range(m - first, m)]
    return tuple(slots)


def program_slots(schedule: Schedule, num_stages: int, num_micro_batches: int) -> tuple[Slot, ...]:
    """All passes in one order that every stage, and every dependency, agrees with.

    In rounds: each stage does its next pass if what it needs was done in earlier rounds. A forward pass needs
    those of the same micro-batch in all earlier stages, a backward pass those in all later stages.
    """
    queues = [stage_slots(schedule, s, num_stages, num_micro_batches) for s in range(num_stages)]
    at = [0] * num_stages
    # How many stages, from the first, have done the forward pass of each micro-batch; likewise backward.
    forward, backward = [0] * num_micro_batches, [0] * num_micro_batches
    done: list[Slot] = []
    while len(done) < 2 * num_stages * num_micro_batches:
        round_: list[Slot] = []
        for stage in range(num_stages):
            if at[stage] == len(queues[stage]):
                continue
            slot = queues[stage][at[stage]]
            count, needed = (
                (backward[slot.micro_batch], num_stages - 1 - stage)
                if slot.backward
                else (forward[slot.micro_batch], stage)
            )
            if count == needed:
                round_.append(slot)
        assert round_, "the order of a schedule has no circle"
        for slot in round_:
            at[slot.stage] += 1
            (backward if slot.backward else forward)[slot.micro_batch] += 1
        done += round_
    return tuple(done)


def program_steps(
    schedule: Schedule, stages: tuple[int, ...], num_micro_batches: int
) -> tuple[list[int], list[int]]:
    """When each copy of each operator is done: its place in the program.

    Args:
        schedule: The order of passes; not ``none``.
        stages: The stage of each operator, never less than that of the operator before.
        num_micro_batches: How many copies there are of each operator.

    Returns:
        The steps of the forward passes and of the backward passes, by copy (see
        `soaprl.graph.repeat.RepeatedGraph`): a permutation of twice as many steps as there are copies.
    """
    n = len(stages)
    members: list[list[int]] = [[] for _ in range(stages[-1] + 1)]
    for operator, stage in enumerate(stages):
        members[stage].append(operator)
    forward, backward, step = [0] * (n * num_micro_batches), [0] * (n * num_micro_batches), 0
    for slot in program_slots(schedule, len(members), num_micro_batches):
        operators = members[slot.stage]
        for operator in reversed(operators) if slot.backward else operators:
            (backward if slot.backward else forward)[slot.micro_batch * n + operator] = step
            step += 1
    return forward, backward
