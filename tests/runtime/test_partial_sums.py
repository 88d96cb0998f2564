"""Partial results that a whole group writes and reads are summed by a collective, and are what they were."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import Groups, initialize_distributed
from soaprl.runtime.program import CompileOptions, Exchange, Program, SumPartials
from soaprl.runtime.program_text import program_text
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import graph_of_model
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.checking import compare, compare_tensors, eager, run
from tests.runtime.executing import execute
from tests.runtime.processes import run_processes
from tests.runtime.test_training import momentum, trained

NUM_SAMPLES, WIDTH, HIDDEN = 6, 4, 12
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class Residual(nn.Module):
    """Two times a wide layer and a narrow one, beside which the input goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(HIDDEN, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = narrow(torch.tanh(wide(x)))
        return x.square().mean()


def made() -> tuple[nn.Module, Tensor, OperatorGraph]:
    torch.manual_seed(0)
    module, batch = Residual().double(), torch.randn(NUM_SAMPLES, WIDTH, dtype=torch.float64)
    return module, batch, graph_of_model(module, (batch,))


def by_hidden(graph: OperatorGraph, num_ranks: int, devices: tuple[int, ...] | None = None) -> Strategy:
    """Wide layers along what they write, narrow ones along what they sum over, the loss on one rank."""
    configs = []
    for operator in graph.operators:
        found = enumerate(operator.factors)
        hidden = [f for f, factor in found if factor.extent == HIDDEN and factor.splittable]
        degrees = tuple(num_ranks if f in hidden else 1 for f in range(len(operator.factors)))
        configs.append(OpConfig(degrees, (devices or tuple(range(num_ranks))) if hidden else (0,)))
    return Strategy(tuple(configs))


def compiled(strategy: Strategy, graph: OperatorGraph, sum_bytes: int) -> Program:
    options = CompileOptions(sum_bytes=sum_bytes, sum_ranks=2)
    program = compile_program(graph, strategy, options=options)
    check_program(program, graph)
    return program


def steps(program: Program, kind: type) -> list[Any]:
    return [step for rank in program.ranks for step in rank.steps if isinstance(step, kind)]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_group_that_writes_and_reads_partial_results_sums_them(num_ranks: int) -> None:
    module, batch, graph = made()
    strategy = by_hidden(graph, num_ranks)
    size = 8 * NUM_SAMPLES * WIDTH
    program = compiled(strategy, graph, size)
    # Forward after the first narrow layer, back from the second wide one; the loss is read by one rank.
    sums = [step for step in program.ranks[0].steps if isinstance(step, SumPartials)]
    names = {k: graph.operators[step.operator].name for k, step in enumerate(sums)}
    assert [step.direction for step in sums] == ["forward", "backward"]
    assert "narrow.0" in names[0]
    assert "wide.1" in names[1]
    assert all(step.num_bytes == size and step.group == tuple(range(num_ranks)) for step in sums)
    assert "sum gradients of" in program_text(program, graph)
    exchanged = compiled(strategy, graph, size + 1)
    assert not steps(exchanged, SumPartials)
    sent = {p: sum(m.num_bytes for e in steps(p, Exchange) for m in e.sends) for p in (program, exchanged)}
    # In both directions each rank sent all it had to all others.
    assert sent[exchanged] - sent[program] == 2 * num_ranks * (num_ranks - 1) * size
    options = CompileOptions(sum_bytes=size, sum_ranks=2)
    with one_thread():
        found, _, ranks = execute(graph, strategy, module, (batch,), num_ranks=num_ranks, options=options)
        degrees = tuple(config.degrees for config in strategy.configs)
        whole = tuple((1,) * len(op.factors) for op in graph.operators)
        compare_tensors(graph, degrees, found, run(graph, whole, module, (batch,)))
        compare(found, eager(module, (batch,)), "summed")
        assert not any(state.num_held for state in ranks.states)


def test_two_ranks_exchange_and_three_sum_from_two_mebibytes_on() -> None:
    options = CompileOptions()
    for num_ranks, num_samples in ((2, 2**16), (3, 2**16), (3, 2**16 - 1)):
        module = Residual().double()
        graph = graph_of_model(module, (torch.randn(num_samples, WIDTH, dtype=torch.float64),))
        program = compile_program(graph, by_hidden(graph, num_ranks), options=options)
        assert bool(steps(program, SumPartials)) is (num_ranks == 3 and num_samples == 2**16)


def test_what_others_read_too_or_one_rank_computes_alone_is_exchanged() -> None:
    _, _, graph = made()
    whole = by_hidden(graph, 3)
    second = next(k for k, op in enumerate(graph.operators) if "wide.1" in op.name)
    elsewhere = whole.replaced(second, OpConfig(whole.configs[second].degrees, (0, 1, 3)))
    fewer = whole.replaced(second, OpConfig(whole.configs[second].degrees, (0, 1, 1)))
    for strategy in (elsewhere, fewer, by_hidden(graph, 3, (0, 1, 1))):
        assert not steps(compiled(strategy, graph, 0), SumPartials)


def in_processes(rank: int, num_ranks: int) -> None:
    module, batch, graph = made()
    losses, state = trained(module, [(batch,)] * 3, momentum)
    groups = Groups()
    whole = by_hidden(graph, num_ranks)
    for strategy in (whole, replace(whole, micro_batches=2, schedule=Schedule.GPIPE)):
        program = compiled(strategy, graph, 0)
        assert steps(program, SumPartials)
        runtime = initialize_distributed(module, graph, program, optimizer=momentum, groups=groups)
        found = torch.stack([runtime.step(batch) for _ in losses])
        assert torch.allclose(found, torch.stack(losses), **CLOSE)
        for name, content in runtime.state_dict().items():
            assert torch.allclose(content, state[name], **CLOSE), name


def test_processes_that_sum_partial_results_train_as_one() -> None:
    run_processes(in_processes, 3, 3)
