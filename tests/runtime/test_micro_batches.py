"""Programs with micro-batches: gradient accumulation and pipelines train as the whole batch does."""

import random
import zlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.program import Backward, Forward
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import graph_of_model, initialize
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Strategy
from tests.runtime.checking import Case
from tests.runtime.executing import random_strategy
from tests.runtime.models import own_cases, zoo_case
from tests.runtime.test_training import compare_training, data_parallel, momentum, reshuffled, trained

NUM_STEPS = 3


class Layers(nn.Module):
    """A chain, whose samples do not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()


class Normalized(nn.Module):
    """A chain with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.norm, self.exit = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(torch.relu(self.norm(self.entry(x)))).square().mean()


def stages_of(graph: OperatorGraph, num_stages: int) -> tuple[int, ...]:
    n = len(graph.operators)
    return tuple(k * num_stages // n for k in range(n))


def pipeline(graph: OperatorGraph, num_stages: int, micro_batches: int, schedule: Schedule) -> Strategy:
    """As many operators in a row in each stage, stage k on rank k."""
    stages = stages_of(graph, num_stages)
    whole = data_parallel(graph, 1)
    configs = tuple(replace(c, devices=(stage,)) for c, stage in zip(whole.configs, stages, strict=True))
    return Strategy(configs, micro_batches=micro_batches, schedule=schedule, stages=stages)


def batches_of(case: Case) -> list[tuple[Any, ...]]:
    batches = []
    for k in range(NUM_STEPS):
        torch.manual_seed(k)
        batches.append(reshuffled(case.factory(case.batch_size)[1]))
    return batches


def check_cut(case: Case, rng: random.Random) -> None:
    """Accumulation, both schedules, and any configurations."""
    with one_thread():
        module, _ = case.factory(case.batch_size)
        batches = batches_of(case)
        graph = graph_of_model(module, batches[0], name=case.name)
        expected = trained(module, batches, momentum)
        strategies = {
            "accumulation": Strategy(data_parallel(graph, 1).configs, micro_batches=2),
            "accumulation by turns": Strategy(
                data_parallel(graph, 2).configs, micro_batches=2, schedule=Schedule.ONE_F_ONE_B
            ),
            "gpipe": pipeline(graph, 3, case.batch_size, Schedule.GPIPE),
            "1f1b": pipeline(graph, 3, case.batch_size, Schedule.ONE_F_ONE_B),
        }
        for what, strategy in strategies.items():
            if what == "accumulation by turns" and case.batch_size < 4:
                continue
            runtime = initialize(module, strategy, batches[0], optimizer=momentum, graph=graph)
            compare_training(module, batches, runtime, expected, f"{case.name}, {what}")


@pytest.mark.parametrize(
    "name", ["attention_fused", "gpt2", "bert-large", "vit-b-16", "rnnlm-2step", "moe", "dlrm"]
)
def test_a_model_cut_into_micro_batches_trains_as_on_the_whole_batch(name: str) -> None:
    own = {case.name: case for case in own_cases()}
    check_cut(own.get(name) or zoo_case(name), random.Random(zlib.crc32(name.encode())))


def test_a_loss_reads_slices_of_the_targets_of_its_micro_batch() -> None:
    """Both samples have as many targets, so that the mean of their means is the mean over all."""
    case = next(case for case in own_cases() if case.name == "mlp")
    module, _ = case.factory(2)
    batch = (torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]),)
    graph = graph_of_model(module, batch)
    strategy = Strategy(data_parallel(graph, 1).configs, micro_batches=2)
    runtime = initialize(module, strategy, batch, optimizer=momentum, graph=graph)
    compare_training(module, [batch] * 2, runtime, trained(module, [batch] * 2, momentum), case.name)


def test_any_configurations_train_micro_batches_as_the_whole_batch() -> None:
    torch.manual_seed(0)
    module, batch = Layers().double(), torch.randn(16, 6, dtype=torch.double)
    graph = graph_of_model(module, (batch,))
    expected = trained(module, [(batch,)] * NUM_STEPS, momentum)
    rng = random.Random(0)
    case = Case(name="", factory=lambda b: (module, (batch,)))
    part = micro_batch(graph, 4)
    for number in range(12):
        schedule = rng.choice(tuple(Schedule))
        strategy = replace(
            random_strategy(part, 4, rng, case),
            micro_batches=4,
            schedule=schedule,
            stages=() if schedule is Schedule.NONE else stages_of(graph, rng.randint(1, 3)),
        )
        runtime = initialize(module, strategy, (batch,), optimizer=momentum, graph=graph)
        compare_training(module, [(batch,)] * NUM_STEPS, runtime, expected, f"strategy {number}: {strategy}")


def test_batch_normalization_sees_micro_batches_as_accumulation_does() -> None:
    torch.manual_seed(0)
    module, batch = Normalized().double(), torch.randn(8, 6, dtype=torch.double)
    graph = graph_of_model(module, (batch,))
    runtime = initialize(
        module, pipeline(graph, 2, 2, Schedule.ONE_F_ONE_B), (batch,), optimizer=momentum, graph=graph
    )
    optimizer = momentum(list(module.named_parameters()))
    for _ in range(NUM_STEPS):
        found = runtime.step(batch)
        optimizer.zero_grad()
        losses = [module(part) / 2 for part in batch.chunk(2)]
        for loss in losses:
            loss.backward()
        optimizer.step()
        assert torch.allclose(found, sum(losses))
    state = runtime.state_dict()
    for name in ("norm.running_mean", "norm.running_var", "norm.weight", "exit.bias"):
        assert torch.allclose(state[name], module.state_dict()[name]), name


def test_dropout_differs_between_micro_batches() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 64))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x * self.scale, 0.5).sum()

    module, batch = Dropping(), torch.ones(2, 64)
    graph = graph_of_model(module, (batch,))
    strategy = Strategy(data_parallel(graph, 1).configs, micro_batches=2)
    runtime = initialize(module, strategy, (batch,), optimizer=momentum, graph=graph)
    runtime.step(batch)
    gradient = next(iter(runtime.ranks.states[0].parameters.values())).grad
    # A kept element gives 2: with equal masks of both samples there are only 0 and 4.
    assert 2.0 in gradient


def test_each_rank_does_its_passes_in_the_order_of_the_schedule() -> None:
    """Stage 0 of 2 with 3 micro-batches: F0 F1 B0 F2 B1 B2 by turns, F0 F1 F2 B0 B1 B2 for GPipe."""
    module, batch = Layers(), torch.randn(6, 6)
    graph = graph_of_model(module, (batch,))
    n = len(graph.operators)
    expected = {Schedule.ONE_F_ONE_B: "F0 F1 B0 F2 B1 B2", Schedule.GPIPE: "F0 F1 F2 B0 B1 B2"}
    for schedule, order in expected.items():
        program = compile_program(graph, pipeline(graph, 2, 3, schedule))
        check_program(program, graph)
        passes = [
            f"{type(step).__name__[0]}{step.operator // n}"
            for step in program.ranks[0].steps
            if isinstance(step, Forward | Backward)
        ]
        assert " ".join(dict.fromkeys(passes)) == order
