"""The distributed executor against the logical one and against training in one process."""

import random
import zlib
from dataclasses import replace

import torch
import torch.distributed as dist

from soaprl.graph.capture import capture, graph_from_program
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import DistributedRank, Groups
from soaprl.runtime.distributed.transport import Transport
from soaprl.runtime.literals import literal_tensors
from soaprl.runtime.local import kernels
from soaprl.runtime.logical import LogicalRanks
from soaprl.runtime.program import CompileOptions, Exchange
from soaprl.runtime.rank import RankState
from soaprl.runtime.stores import blocks_of
from soaprl.runtime.training import graph_of_model, initialize
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding
from tests.runtime.checking import Case, sources
from tests.runtime.executing import random_strategy
from tests.runtime.models import own_cases, zoo_case
from tests.runtime.processes import run_processes
from tests.runtime.random_models import random_model
from tests.runtime.test_micro_batches import Layers, pipeline
from tests.runtime.test_training import (
    adam,
    compare_training,
    data_parallel,
    model_parallel,
    momentum,
    reshuffled,
    trained,
)

NUM_RANKS = 4
NUM_STRATEGIES = 3
# Sums over ranks are taken in another order than by the logical executor.
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def check_against_logical(case: Case, seed: int, groups: Groups, num_strategies: int) -> None:
    """Fails unless loss and gradients of random strategies are those of the logical executor."""
    rng = random.Random(seed)
    graph = graph_from_program(
        capture(case.factory, case.batch_size, name=case.name), coarsened=rng.random() < 0.8
    )
    module, args = case.factory(case.batch_size)
    module.train()
    fetch = blocks_of(graph, {**literal_tensors(graph), **sources(graph, module, args)})
    for number in range(num_strategies):
        sharding = tuple(Sharding)[(seed + number) % 4]
        strategy = replace(random_strategy(graph, NUM_RANKS, rng, case), sharding=sharding)
        options = CompileOptions(
            batch_norm="synchronized", bucket_bytes=rng.choice([1, 200, 2**20]), sum_bytes=0, sum_ranks=2
        )
        program = compile_program(graph, strategy, num_ranks=NUM_RANKS, options=options)
        check_program(program, graph)
        logical = LogicalRanks(graph, program, fetch)
        distributed = DistributedRank(graph, program, fetch, groups=groups)
        for iteration in range(2):
            expected = logical.iterate(fetch, seed=iteration)
            found = distributed.iterate(fetch, seed=iteration)
            what = f"{case.name}, strategy {number}, iteration {iteration}: {strategy}"
            assert torch.allclose(found, expected, **CLOSE), f"{what}: loss {found}, not {expected}"
            own = logical.states[groups.rank]
            for block, parameter in distributed.state.updated.items():
                gradient, other = parameter.grad, own.updated[block].grad
                assert torch.allclose(gradient, other, equal_nan=True, **CLOSE), f"{what}: {block}"
        assert not distributed.state.num_held, what


def random_programs(rank: int, seeds: list[int]) -> None:
    groups = Groups()
    for seed in seeds:
        check_against_logical(random_model(seed), seed, groups, NUM_STRATEGIES)


def training(rank: int, names: list[str], num_steps: int) -> None:
    for name in names:
        own = {case.name: case for case in own_cases()}
        case = own.get(name) or zoo_case(name)
        rng = random.Random(zlib.crc32(name.encode()))
        module, _ = case.factory(case.batch_size)
        batches = []
        for k in range(num_steps):
            torch.manual_seed(k)
            batches.append(reshuffled(case.factory(case.batch_size)[1]))
        graph = graph_of_model(module, batches[0], name=name)
        anywhere = random_strategy(graph, NUM_RANKS, rng, case)
        for what, strategy, make in (
            ("data-parallel", data_parallel(graph, NUM_RANKS), momentum),
            ("model-parallel", model_parallel(graph, NUM_RANKS), adam),
            ("random", anywhere, momentum),
        ):
            runtime = initialize(
                module,
                strategy,
                batches[0],
                optimizer=make,
                graph=graph,
                batch_norm="synchronized",
                executor="distributed",
                max_gradient_norm=1.0,
            )
            expected = trained(module, batches, make, clip=1.0)
            compare_training(module, batches, runtime, expected, f"{name}, {what}")


def test_random_graphs_compute_in_four_processes_what_they_compute_in_one() -> None:
    run_processes(random_programs, NUM_RANKS, list(range(8)))


def test_small_models_train_in_four_processes_as_in_one() -> None:
    run_processes(training, NUM_RANKS, ["conv_block", "mlp", "gpt2", "moe"], 3)


def pipelines(rank: int) -> None:
    torch.manual_seed(0)
    module, batch = Layers().double(), torch.randn(12, 6, dtype=torch.double)
    graph = graph_of_model(module, (batch,))
    expected = trained(module, [(batch,)] * 3, momentum)
    for schedule in (Schedule.GPIPE, Schedule.ONE_F_ONE_B):
        for micro_batches in (2, 6):
            runtime = initialize(
                module,
                pipeline(graph, NUM_RANKS, micro_batches, schedule),
                (batch,),
                optimizer=momentum,
                graph=graph,
                executor="distributed",
            )
            what = f"{schedule}, {micro_batches} micro-batches"
            compare_training(module, [(batch,)] * 3, runtime, expected, what)


def test_pipelines_train_in_four_processes_as_in_one() -> None:
    run_processes(pipelines, NUM_RANKS)


def message_before_its_step(rank: int) -> None:
    module, batch = Layers().double(), torch.randn(12, 6, dtype=torch.double)
    graph = graph_of_model(module, (batch,))
    program = compile_program(graph, model_parallel(graph, 2), num_ranks=2)
    tensors = {**literal_tensors(graph), **sources(graph, module, (batch,))}
    groups, fetch = Groups(), blocks_of(graph, tensors)
    state = RankState(graph, program, rank, fetch, torch.device("cpu"), kernels())
    transport = Transport(state, groups, timeout_s=20.0)
    step = next(s for s in program.ranks[rank].steps if isinstance(s, Exchange) and s.direction == "forward")
    (message,) = step.sends if rank == 0 else step.receives
    shapes = [[stop - start for start, stop in piece.box] for piece in message.pieces]
    if rank == 0:
        for piece, shape in zip(message.pieces, shapes, strict=True):
            state.tasks.keep(piece, torch.full(shape, 7.0, dtype=torch.double))
        # A message has gone when its receiver was ready for it; nobody comes to the step before the barrier.
        transport.start(step)()
        dist.barrier()
    else:
        transport.expect(step)
        dist.barrier()
        transport.start(step)()
        assert all(bool((state.value(piece) == 7.0).all()) for piece in message.pieces)


def test_an_expected_message_leaves_before_its_receiver_comes_to_the_step() -> None:
    run_processes(message_before_its_step, 2)
