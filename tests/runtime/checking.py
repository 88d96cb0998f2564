"""The harness of the execution tests: a module, split at random, must compute what it computes whole."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soaprl.graph.capture import capture, graph_from_program
from soaprl.graph.capture.export import WithStandInLoss
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole
from soaprl.runtime.reference import run_graph
from soaprl.runtime.threads import one_thread

Degrees = tuple[tuple[int, ...], ...]
MAX_PARTS = 8
TOLERANCE = {"rtol": 1e-8, "atol": 1e-10}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A module to check.

    Attributes:
        name: Names the test.
        factory: ``factory(batch_size)`` returns the module and its arguments, in float64.
        batch_size: Global batch size.
        may_split: Whether a factor of an operator may be split; all may by default.
        matches_eager: Whether the module itself gives the same numbers (not if it draws random ones).
    """

    name: str
    factory: Callable[[int], tuple[nn.Module, tuple[Any, ...]]]
    batch_size: int = 4
    may_split: Callable[[Operator, int], bool] = lambda operator, factor: True
    matches_eager: bool = True


class OneOperation(nn.Module):
    """``function`` of inputs, to each of which a parameter is added, so that its gradient shows."""

    def __init__(self, function: Callable[..., Any], shapes: list[tuple[int, ...] | None], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.function = function
        self.offsets = nn.ParameterList(
            nn.Parameter(torch.randn(shape or (1,), generator=generator, dtype=torch.float64))
            for shape in shapes
        )

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(
            *(x + p if x.is_floating_point() else x for x, p in zip(inputs, self.offsets, strict=True))
        )


def check(case: Case, rng: random.Random, *, num_random: int = 2) -> None:
    """Fails unless every split of the case gives the loss and gradients of the whole module.

    Where operators are folded, each factor is split by itself and then `num_random` combinations at random;
    where every call is an operator of its own, only the latter.
    """
    with one_thread():
        _check(case, rng, num_random)


def _check(case: Case, rng: random.Random, num_random: int) -> None:
    program = capture(case.factory, case.batch_size, name=case.name)
    torch.manual_seed(rng.randrange(2**31))
    module, args = case.factory(case.batch_size)
    module.train()
    expected = eager(module, args) if case.matches_eager else None
    for coarsened in (True, False):
        graph = graph_from_program(program, coarsened=coarsened)
        whole = tuple((1,) * len(op.factors) for op in graph.operators)
        unsplit = run(graph, whole, module, args)
        if expected is not None:
            compare(unsplit, expected, f"{case.name}, not split (coarsened={coarsened})")
        for degrees in splits(graph, rng, case, num_random, singly=coarsened):
            try:
                found = run(graph, degrees, module, args)
                compare_tensors(graph, degrees, found, unsplit)
                compare(found, unsplit, "gradients")
            except (AssertionError, RuntimeError, IndexError, ValueError) as error:
                raise AssertionError(
                    f"{case.name} (coarsened={coarsened}), split {describe(graph, degrees)}: {error}"
                ) from error


@dataclass(frozen=True)
class Outcome:
    """Loss, gradients by parameter name, and all tensors by index."""

    loss: Tensor
    gradients: dict[str, Tensor]
    tensors: dict[int, Tensor]


def eager(module: nn.Module, args: tuple[Any, ...]) -> Outcome:
    """What the module itself computes; its buffers stay as they are."""
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    loss = module(*args)
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        loss = WithStandInLoss(module)(*args)
    outcome = Outcome(loss.detach().reshape(()), gradients(module, loss), {})
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return outcome


def run(graph: OperatorGraph, degrees: Degrees, module: nn.Module, args: tuple[Any, ...]) -> Outcome:
    """What the split graph computes."""
    tensors = run_graph(graph, degrees, sources(graph, module, args))
    loss = tensors[graph.loss]
    return Outcome(
        loss.detach().reshape(()), gradients(module, loss), {k: t.detach() for k, t in tensors.items()}
    )


def sources(graph: OperatorGraph, module: nn.Module, args: tuple[Any, ...]) -> dict[int, Tensor]:
    """The tensors that a run starts from, by index."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    inputs = iter([leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)])
    found: dict[int, Tensor] = {}
    for index, tensor in enumerate(graph.tensors):
        if tensor.role is TensorRole.INPUT:
            found[index] = next(inputs)
        elif tensor.role in (TensorRole.PARAMETER, TensorRole.BUFFER) and tensor.name in state:
            found[index] = state[tensor.name]
    return found


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter; zeros where the loss does not depend on it."""
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss.reshape(()), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def splits(
    graph: OperatorGraph, rng: random.Random, case: Case, num_random: int, *, singly: bool
) -> Iterator[Degrees]:
    """Each factor split alone (`singly`), by turns over all operators, then random combinations."""
    legal = [
        [f for f, factor in enumerate(op.factors) if factor.splittable and case.may_split(op, f)]
        for op in graph.operators
    ]
    for turn in range(max((len(factors) for factors in legal), default=0) if singly else 0):
        yield tuple(
            one_factor(op, factors[turn % len(factors)], rng) if factors else (1,) * len(op.factors)
            for op, factors in zip(graph.operators, legal, strict=True)
        )
    for _ in range(num_random):
        yield tuple(
            random_degrees(op, factors, rng) for op, factors in zip(graph.operators, legal, strict=True)
        )


def one_factor(operator: Operator, factor: int, rng: random.Random) -> tuple[int, ...]:
    """A degree above 1 for one factor."""
    degree = rng.randint(2, min(operator.factors[factor].max_degree, MAX_PARTS))
    return tuple(degree if f == factor else 1 for f in range(len(operator.factors)))


def random_degrees(operator: Operator, factors: list[int], rng: random.Random) -> tuple[int, ...]:
    """Degrees of several factors at once, at most `MAX_PARTS` parts."""
    degrees = [1] * len(operator.factors)
    left = MAX_PARTS
    for f in rng.sample(factors, len(factors)):
        degrees[f] = rng.randint(1, min(operator.factors[f].max_degree, left))
        left //= degrees[f]
    return tuple(degrees)


def compare(found: Outcome, expected: Outcome, what: str) -> None:
    """Fails unless loss and gradients agree."""
    assert torch.allclose(found.loss, expected.loss, **TOLERANCE), (
        f"{what}: {found.loss} is not {expected.loss}"
    )
    for name, gradient in expected.gradients.items():
        other = found.gradients[name]
        error = (other - gradient).abs().max().item() if gradient.numel() else 0.0
        assert torch.allclose(other, gradient, equal_nan=True, **TOLERANCE), (
            f"{what}: the gradient of {name} is off by up to {error}"
        )


def compare_tensors(graph: OperatorGraph, degrees: Degrees, found: Outcome, expected: Outcome) -> None:
    """Fails at the first operator whose outputs differ; outputs that nobody reads do not count."""
    for operator, split in zip(graph.operators, degrees, strict=True):
        for access in operator.outputs:
            index = access.tensor
            if not graph.consumers.get(index) and index != graph.loss:
                continue
            assert torch.allclose(
                found.tensors[index].double(), expected.tensors[index].double(), equal_nan=True, **TOLERANCE
            ), (
                f"operator {operator.name} split {named(operator, split)} "
                f"computes another {graph.tensors[index].name}"
            )


def named(operator: Operator, degrees: tuple[int, ...]) -> str:
    """Degrees above 1 by factor name."""
    return (
        ", ".join(f"{f.name}={d}" for f, d in zip(operator.factors, degrees, strict=True) if d > 1) or "whole"
    )


def describe(graph: OperatorGraph, degrees: Degrees) -> str:
    """Each operator with its split."""
    return "; ".join(f"{op.name}[{named(op, d)}]" for op, d in zip(graph.operators, degrees, strict=True))
