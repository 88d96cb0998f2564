"""Training by a strategy against training of the original module, step for step."""

import copy
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.graph.capture.export import WithStandInLoss
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.checking import Case
from tests.runtime.executing import random_strategy
from tests.runtime.models import own_cases, zoo_case, zoo_names

NUM_STEPS = 3
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


def momentum(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(named, lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(named: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(named, lr=0.01)


def data_parallel(graph: OperatorGraph, num_ranks: int) -> Strategy:
    """Each operator along its samples, part k on rank k."""
    configs = []
    for operator in graph.operators:
        degrees = [1] * len(operator.factors)
        for f, factor in enumerate(operator.factors):
            if factor.kind is FactorKind.SAMPLE and factor.splittable:
                degrees[f] = min(num_ranks, factor.max_degree)
                break
        configs.append(OpConfig(tuple(degrees), tuple(range(max(degrees, default=1)))))
    return Strategy(tuple(configs))


def model_parallel(graph: OperatorGraph, num_ranks: int) -> Strategy:
    """As many operators in a row on each rank."""
    n = len(graph.operators)
    return Strategy(
        tuple(OpConfig((1,) * len(op.factors), (k * num_ranks // n,)) for k, op in enumerate(graph.operators))
    )


def trained(
    module: nn.Module,
    batches: list[tuple[Any, ...]],
    make: Callable[[Any], torch.optim.Optimizer],
    *,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    clip: float | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses and the state dict of plain training in one process."""
    module = copy.deepcopy(module)
    module.train()
    optimizer = make(list(module.named_parameters()))
    scheduler = schedule(optimizer) if schedule else None
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = module(*batch)
        if loss.numel() != 1 or loss.dim():
            loss = WithStandInLoss(module)(*batch)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.detach().double())
    return losses, module.state_dict()


def compare_training(
    module: nn.Module,
    batches: list[tuple[Any, ...]],
    runtime: LogicalRuntime,
    expected: tuple[list[Tensor], dict[str, Tensor]],
    what: str,
    noise: float = 0.0,
) -> None:
    close = {"rtol": TOLERANCE["rtol"], "atol": TOLERANCE["atol"] + noise}
    for number, (batch, loss) in enumerate(zip(batches, expected[0], strict=True)):
        found = runtime.step(*batch)
        assert torch.allclose(found, loss, **close), f"{what}: loss {number} is {found}, not {loss}"
    state = runtime.state_dict()
    assert state.keys() == module.state_dict().keys()
    for name, content in expected[1].items():
        assert torch.allclose(state[name].double(), content.double(), **close), (
            f"{what}: {name} is off by {(state[name] - content).abs().max()}"
        )


def rounding(module: nn.Module, batches: list[tuple[Any, ...]], make: Any) -> float:
    """How far rounding alone may take training: the effect of inputs that differ in their last digits."""
    nudged = [
        tuple(x * (1 + 1e-15 * torch.randn_like(x)) if x.is_floating_point() else x for x in batch)
        for batch in batches
    ]
    (losses, state), (others, other) = (trained(module, b, make) for b in (batches, nudged))
    pairs = [*zip(losses, others, strict=True), *((state[name], other[name]) for name in state)]
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def check_training(case: Case, rng: random.Random, *, ill_conditioned: bool = False) -> None:
    with one_thread():
        module, _ = case.factory(case.batch_size)
        batches = []
        for k in range(NUM_STEPS):
            torch.manual_seed(k)
            batches.append(reshuffled(case.factory(case.batch_size)[1]))
        graph = graph_of_model(module, batches[0], name=case.name)
        for number, make in enumerate((momentum, adam)):
            expected = trained(module, batches, make)
            # A hundred parts round differently in a hundred places.
            noise = 100 * rounding(module, batches, make) if ill_conditioned else 0.0
            anywhere = random_strategy(graph, rng.randint(2, 5), rng, Case(name="", factory=case.factory))
            for what, strategy in (
                ("data-parallel", data_parallel(graph, 2 + number)),
                ("model-parallel", model_parallel(graph, 3 - number)),
                ("random", anywhere),
            ):
                runtime = initialize(
                    module, strategy, batches[0], optimizer=make, graph=graph, batch_norm="synchronized"
                )
                name = f"{case.name}, {what}, {make.__name__}"
                compare_training(module, batches, runtime, expected, name, noise)


def reshuffled(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same samples in another order, and noise: a new batch for any model."""
    order = torch.randperm(batch[0].shape[0])
    return tuple(
        x[order] + (0.1 * torch.randn_like(x) if x.is_floating_point() else 0)
        if isinstance(x, Tensor) and x.dim() and len(x) == len(order)
        else x
        for x in batch
    )


@pytest.mark.parametrize("name", [c.name for c in own_cases()])
def test_a_small_model_trains_on_any_ranks_as_in_one_process(name: str) -> None:
    case = next(c for c in own_cases() if c.name == name)
    check_training(case, random.Random(zlib.crc32(name.encode())))


_LONG = ("inception-v3", "resnet-101", "alexnet")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _LONG else n for n in zoo_names()]
)
def test_a_zoo_model_trains_on_any_ranks_as_in_one_process(name: str) -> None:
    # Its last normalizations are over four numbers each: rounding grows a billion times in three steps.
    ill_conditioned = name == "inception-v3"
    rng = random.Random(zlib.crc32(name.encode()))
    check_training(zoo_case(name), rng, ill_conditioned=ill_conditioned)
