"""Models of the zoo trained in four processes by strategies of people and of searches, as in one process.

All of it takes many minutes: ``pytest -m dist tests/runtime/test_strategies.py``.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture.export import WithStandInLoss
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import Groups, initialize_distributed
from soaprl.runtime.program import CompileOptions
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import graph_of_model
from soaprl.search.registry import search
from soaprl.search.task import Budget, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Strategy
from tests.runtime.models import zoo_case
from tests.runtime.processes import run_processes
from tests.runtime.test_micro_batches import pipeline
from tests.runtime.test_training import reshuffled

NUM_RANKS, NUM_STEPS, BATCH_SIZE, MICRO_BATCHES, NUM_EVALUATIONS = 4, 20, 8, 4, 300
# A loaded machine takes its time.
TIMEOUT_S = 300.0
# The expert of each kind of model; there is none for recommendation.
EXPERTS = {
    "lenet": "one-weird-trick",
    "alexnet": "one-weird-trick",
    "inception-v3": "one-weird-trick",
    "resnet-101": "one-weird-trick",
    "dlrm": "",
    "rnnlm-2step": "gnmt-expert",
    "rnntc": "gnmt-expert",
    "nmt": "gnmt-expert",
    "gpt2": "megatron",
    "bert-large": "megatron",
    "llama-7b": "megatron",
    "moe": "megatron",
    "vit-b-16": "megatron",
}
# Rounding grows from step to step: how much of what is compared it may be after all of them.
# From where on rounding decides what training does, there is nothing to compare.
LARGEST_NOISE = 1e-3
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def gentle(named: Any) -> torch.optim.Optimizer:
    """Steps so small that training is well-conditioned, batch normalization over few samples included."""
    return torch.optim.SGD(named, lr=1e-4, momentum=0.9)


def strategies_of(graph: OperatorGraph, expert: str) -> dict[str, Strategy]:
    """By data-parallel, model-parallel, expert, pipeline and searched strategies."""
    problem = Problem(graph=graph, cluster=cluster_from_name(f"p100-1x{NUM_RANKS}"), cost=RooflineCostModel())
    found = {"pipeline": pipeline(graph, NUM_RANKS, MICRO_BATCHES, Schedule.ONE_F_ONE_B)}
    for method in filter(None, ("data-parallel", "model-parallel", expert, "mcmc")):
        task = SearchTask(
            problem=problem,
            evaluator=Simulator(problem),
            budget=Budget(evaluations=NUM_EVALUATIONS),
            clock=time.monotonic,
        )
        found[method] = search(method, task).strategy
    return found


def losses_of(
    module: nn.Module, batches: list[tuple[Any, ...]], cut: Callable[[Any], list[Any]]
) -> list[float]:
    """Of plain training in one process, with the gradients of parts of each batch accumulated."""
    module = copy.deepcopy(module)
    module.train()
    optimizer, losses = gentle(list(module.named_parameters())), []
    for batch in batches:
        optimizer.zero_grad()
        parts = list(zip(*(cut(x) for x in batch), strict=True))
        found = []
        for part in parts:
            loss = module(*part)
            loss = loss if loss.numel() == 1 and not loss.dim() else WithStandInLoss(module)(*part)
            (loss / len(parts)).backward()
            found.append(loss.detach().double() / len(parts))
        optimizer.step()
        losses.append(torch.stack(found).sum().item())
    return losses


def expected_of(
    module: nn.Module, batches: list[tuple[Any, ...]], cut: Callable[[Any], list[Any]]
) -> list[tuple[float, float]]:
    """Losses, and how far rounding alone may take each: the effect of other last digits of the inputs.

    The last normalizations of Inception are over two numbers each when its batch is cut, which has no bounds.
    """
    nudged = [
        tuple(x * (1 + 1e-15 * torch.randn_like(x)) if x.is_floating_point() else x for x in batch)
        for batch in batches
    ]
    pairs = zip(losses_of(module, batches, cut), losses_of(module, nudged, cut), strict=True)
    # A hundred parts round differently in a hundred places.
    return [(loss, 100 * abs(loss - other)) for loss, other in pairs]


def batches_of(name: str) -> list[tuple[Any, ...]]:
    batches = []
    for k in range(NUM_STEPS):
        torch.manual_seed(k)
        batches.append(reshuffled(zoo_case(name).factory(BATCH_SIZE)[1]))
    return batches


def train(
    rank: int,
    name: str,
    graph: OperatorGraph,
    strategies: dict[str, tuple[Strategy, list[tuple[float, float]]]],
) -> None:
    module, _ = zoo_case(name).factory(BATCH_SIZE)
    batches, groups = batches_of(name), Groups(timeout_s=TIMEOUT_S)
    for what, (strategy, expected) in strategies.items():
        options = CompileOptions(batch_norm="synchronized")
        program = compile_program(graph, strategy, num_ranks=NUM_RANKS, options=options)
        runtime = initialize_distributed(
            module, graph, program, optimizer=gentle, groups=groups, timeout_s=TIMEOUT_S
        )
        for number, (batch, (loss, noise)) in enumerate(zip(batches, expected, strict=True)):
            if noise > LARGEST_NOISE * abs(loss):
                assert number > 1, f"{name}, {what}: nothing could be compared"
                break
            found = runtime.step(*batch).item()
            close = abs(found - loss) <= CLOSE["atol"] + CLOSE["rtol"] * abs(loss) + noise
            assert close, f"{name}, {what}: loss {number}: {found}, not {loss} (noise {noise})"
    groups.close()


@pytest.mark.dist
@pytest.mark.parametrize("name", EXPERTS)
def test_a_zoo_model_trains_by_anyones_strategy_in_four_processes_as_in_one(name: str) -> None:
    with one_thread():
        module, _ = zoo_case(name).factory(BATCH_SIZE)
        batches = batches_of(name)
        graph = graph_of_model(module, batches[0], name=name)
        whole = expected_of(module, batches, lambda x: [x])
        cut = expected_of(module, batches, lambda x: list(x.chunk(MICRO_BATCHES)))
        strategies = {
            what: (strategy, cut if strategy.micro_batches > 1 else whole)
            for what, strategy in strategies_of(graph, EXPERTS[name]).items()
        }
    run_processes(train, NUM_RANKS, name, graph, strategies)
