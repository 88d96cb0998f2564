from itertools import pairwise

import pytest

from soaprl.strategy.schedules import Schedule, Slot, program_slots, program_steps, stage_slots

SCHEDULES = [Schedule.GPIPE, Schedule.ONE_F_ONE_B]


def test_gpipe_does_all_forward_passes_first() -> None:
    found = stage_slots(Schedule.GPIPE, 1, 3, 2)
    assert found == (Slot(1, 0, False), Slot(1, 1, False), Slot(1, 0, True), Slot(1, 1, True))


def test_1f1b_alternates_once_the_pipeline_is_full() -> None:
    text = {
        stage: " ".join(f"{'B' if s.backward else 'F'}{s.micro_batch}" for s in slots)
        for stage in range(3)
        for slots in [stage_slots(Schedule.ONE_F_ONE_B, stage, 3, 4)]
    }
    assert text == {
        0: "F0 F1 F2 B0 F3 B1 B2 B3",
        1: "F0 F1 B0 F2 B1 F3 B2 B3",
        2: "F0 B0 F1 B1 F2 B2 F3 B3",
    }


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (2, 1), (3, 2), (4, 4), (4, 9), (7, 3)])
def test_the_program_has_every_pass_once_and_after_what_it_needs(schedule: Schedule, p: int, m: int) -> None:
    slots = program_slots(schedule, p, m)
    place = {slot: i for i, slot in enumerate(slots)}
    assert len(place) == len(slots) == 2 * p * m
    for stage in range(p):
        own = [slot for slot in slots if slot.stage == stage]
        assert tuple(own) == stage_slots(schedule, stage, p, m)
    for micro_batch in range(m):
        way = [Slot(s, micro_batch, False) for s in range(p)]
        way += [Slot(s, micro_batch, True) for s in reversed(range(p))]
        assert all(place[a] < place[b] for a, b in pairwise(way))


@pytest.mark.parametrize(("p", "m"), [(1, 4), (3, 2), (4, 8)])
def test_1f1b_has_at_most_as_many_micro_batches_in_flight_as_stages_follow(p: int, m: int) -> None:
    for stage in range(p):
        in_flight = most = 0
        for slot in stage_slots(Schedule.ONE_F_ONE_B, stage, p, m):
            in_flight += -1 if slot.backward else 1
            most = max(most, in_flight)
        assert most == min(p - stage, m)


def test_steps_are_those_of_the_program_operator_by_operator() -> None:
    forward, backward = program_steps(Schedule.GPIPE, (0, 0, 1), 2)
    # F(0,0): 0 1; F(1,0): 2 and F(0,1): 3 4 in one round, stage 0 first
    assert forward == [0, 1, 4, 2, 3, 5]
    assert sorted(forward + backward) == list(range(12))
    # backward passes run through the operators in reverse
    assert backward[0] == backward[1] + 1
    assert backward[2] < backward[1]
