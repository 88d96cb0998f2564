import random
from dataclasses import replace

import pytest
import torch

from soaprl.errors import ProgramError
from soaprl.graph.capture import graph_from_factory
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.program import CompileOptions, Exchange, Forward, Program
from soaprl.runtime.training import graph_of_model
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding
from tests.runtime.executing import random_strategy
from tests.runtime.models import own_cases
from tests.runtime.mutations import MUTATIONS, places, step_at, with_step
from tests.runtime.random_models import random_model
from tests.runtime.test_micro_batches import Layers
from tests.runtime.test_partial_sums import by_hidden
from tests.runtime.test_partial_sums import made as residual
from tests.runtime.test_training import data_parallel

NUM_PROGRAMS = 12


@pytest.fixture(scope="module")
def programs() -> list[tuple[OperatorGraph, Program]]:
    """Right programs of several models on 2 to 6 ranks."""
    cases = [*own_cases(), *(random_model(seed) for seed in range(40, 46))]
    made = []
    # The first has batch normalization, whose statistics ranks share here.
    split = replace(cases[0], may_split=lambda operator, factor: True)
    for k, case in enumerate([split, *cases[1:NUM_PROGRAMS]]):
        rng = random.Random(k)
        graph = graph_from_factory(case.factory, case.batch_size, name=case.name)
        num_ranks = rng.randint(2, 6)
        options = CompileOptions(
            batch_norm="synchronized",
            clip_gradients=k % 2 == 0,
            bucket_bytes=rng.choice([1, 2**20]),
            sum_bytes=0,
            sum_ranks=2,
        )
        strategy = random_strategy(graph, num_ranks, rng, case)
        strategy = replace(strategy, sharding=tuple(Sharding)[k % 4])
        made.append((graph, compile_program(graph, strategy, num_ranks=num_ranks, options=options)))
    # Random graphs hardly ever have partial results that a group both writes and reads.
    _, _, graph = residual()
    made.append((graph, compile_program(graph, by_hidden(graph, 3), options=CompileOptions(sum_bytes=0))))
    graph = graph_of_model(Layers(), (torch.randn(12, 6),))
    for sharding, schedule in ((Sharding.ZERO2, Schedule.GPIPE), (Sharding.ZERO3, Schedule.ONE_F_ONE_B)):
        strategy = replace(data_parallel(graph, 2), sharding=sharding, micro_batches=3, schedule=schedule)
        made.append((graph, compile_program(graph, strategy)))
    return made


def test_what_the_compiler_makes_is_right(programs: list[tuple[OperatorGraph, Program]]) -> None:
    for graph, program in programs:
        check_program(program, graph)


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_spoiled_program_is_refused(name: str, programs: list[tuple[OperatorGraph, Program]]) -> None:
    rng = random.Random(name)
    spoiled = 0
    for graph, program in programs:
        for _ in range(3):
            mutated = MUTATIONS[name](program, rng)
            if mutated is None or mutated == program:
                continue
            spoiled += 1
            with pytest.raises(ProgramError, match="rank"):
                check_program(mutated, graph)
    assert spoiled, "no program has anything of this kind"


def test_an_error_names_rank_step_and_operator(programs: list[tuple[OperatorGraph, Program]]) -> None:
    graph, program = programs[0]
    place = places(program, Forward, where=lambda step: bool(step.waits))[0]
    step = step_at(program, place)
    name = graph.operators[step.operator].name
    with pytest.raises(
        ProgramError, match=rf"rank {place[0]}, step {place[1]} \(forward {name}\[{step.part}\]"
    ):
        check_program(with_step(program, place, replace(step, waits=())), graph)


def test_ranks_that_would_wait_for_each_other_are_refused() -> None:
    # Rank 0 has #2 before #1, rank 1 the other way round: each would wait for the other.
    case = random_model(44)
    graph = graph_from_factory(case.factory, case.batch_size, name=case.name)
    for seed in range(50):
        program = compile_program(graph, random_strategy(graph, 2, random.Random(seed), case), num_ranks=2)
        steps = list(program.ranks[0].steps)
        both = [i for i, s in enumerate(steps) if isinstance(s, Exchange)]
        if len(both) >= 2:
            break
    steps[both[0]], steps[both[1]] = steps[both[1]], steps[both[0]]
    changed = replace(program.ranks[0], steps=tuple(steps))
    with pytest.raises(ProgramError, match=r"rank 0, step .* ranks could wait for each other"):
        check_program(replace(program, ranks=(changed, program.ranks[1])), graph)
