"""The harness of the program tests: a random strategy, compiled and run by the reference executor."""

import random
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.literals import literal_tensors
from soaprl.runtime.logical import LogicalRanks
from soaprl.runtime.program import Box, CompileOptions, Piece, Program
from soaprl.runtime.reference import combined
from soaprl.runtime.stores import blocks_of
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.checking import Case, Outcome, random_degrees, sources


def random_strategy(graph: OperatorGraph, num_ranks: int, rng: random.Random, case: Case) -> Strategy:
    """Any degrees on any devices: in turn, all on one, or each task anywhere; nothing is sharded.

    Sometimes every operator is split along one factor over the same devices, if that can be.
    """
    configs, together = [], rng.randint(2, num_ranks) if rng.random() < 0.25 else 0
    for operator in graph.operators:
        legal = [f for f, x in enumerate(operator.factors) if x.splittable and case.may_split(operator, f)]
        shared = [f for f in legal if operator.factors[f].max_degree >= together > 0]
        if shared:
            chosen = rng.choice(shared)
            degrees = tuple(together if f == chosen else 1 for f in range(len(operator.factors)))
            configs.append(OpConfig(degrees, tuple(range(together))))
            continue
        split = rng.random() < 0.8
        degrees = random_degrees(operator, legal, rng) if split else (1,) * len(operator.factors)
        count, first = OpConfig(degrees, ()).num_tasks, rng.randrange(num_ranks)
        placed = rng.choice(("turn", "turn", "one", "anywhere"))
        if placed == "turn":
            devices = tuple((first + k) % num_ranks for k in range(count))
        elif placed == "one":
            devices = (first,) * count
        else:
            devices = tuple(rng.randrange(num_ranks) for _ in range(count))
        configs.append(OpConfig(degrees, devices))
    return Strategy(tuple(configs))


def execute(
    graph: OperatorGraph,
    strategy: Strategy,
    module: nn.Module,
    args: tuple[Any, ...],
    *,
    num_ranks: int,
    seed: int = 0,
    options: CompileOptions | None = None,
) -> tuple[Outcome, Program, LogicalRanks]:
    """Compiles and runs one iteration, each task by itself and watched; then again, on tapes.

    What comes of the second must be the same to the last bit.
    """
    program = compile_program(graph, strategy, num_ranks=num_ranks, options=options)
    check_program(program, graph)
    content = {**literal_tensors(graph), **sources(graph, module, args)}
    ranks = LogicalRanks(graph, program, blocks_of(graph, content))
    written: dict[int, dict[Box, list[tuple[int, Tensor]]]] = defaultdict(lambda: defaultdict(list))

    def watch(piece: Piece, value: Tensor) -> None:
        written[piece.tensor][piece.box].append((piece.part, value.clone()))

    loss = ranks.iterate(blocks_of(graph, content), seed=seed, watch=watch)
    tensors = {tensor: whole(graph, tensor, boxes) for tensor, boxes in written.items()}
    gradients = parameter_gradients(graph, ranks, module)
    check_tapes(graph, ranks, module, loss, gradients, ranks.iterate(blocks_of(graph, content), seed=seed))
    loss = loss.to(getattr(torch, graph.tensors[graph.loss].dtype))
    return Outcome(loss, gradients, tensors), program, ranks


def check_tapes(
    graph: OperatorGraph,
    ranks: LogicalRanks,
    module: nn.Module,
    loss: Tensor,
    gradients: dict[str, Tensor],
    again: Tensor,
) -> None:
    """Fails unless the iteration that ended gave the same, to the last bit, as the one before."""
    torch.testing.assert_close(again, loss, rtol=0, atol=0, equal_nan=True)
    for name, gradient in parameter_gradients(graph, ranks, module).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=0, equal_nan=True, msg=name)


def whole(graph: OperatorGraph, tensor: int, boxes: dict[Box, list[tuple[int, Tensor]]]) -> Tensor:
    """A tensor from what tasks wrote of it."""
    stored, producer = graph.tensors[tensor], graph.operators[graph.producer[tensor]]
    how = next(a.combine for a in producer.outputs if a.tensor == tensor)
    all_of_it = tuple((0, extent) for extent in stored.refined_shape)
    content: Tensor | None = None
    for box, parts in boxes.items():
        value = combined([v for _, v in sorted(parts, key=lambda pair: pair[0])], how)
        if content is None:
            content = value.new_zeros(stored.refined_shape)
        content[inside(box, all_of_it)] = value
    assert content is not None
    return content.reshape(stored.shape)


def parameter_gradients(graph: OperatorGraph, ranks: LogicalRanks, module: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter by name, from the ranks that own parts of it."""
    found = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for state in ranks.states:
        for block in state.program.owned:
            stored = graph.tensors[block.tensor]
            assert stored.role is TensorRole.PARAMETER
            if stored.requires_grad:
                all_of_it = tuple((0, extent) for extent in stored.refined_shape)
                target = found[stored.name].view(stored.refined_shape)
                target[inside(block.box, all_of_it)] = state.gradient(block)
    return found
