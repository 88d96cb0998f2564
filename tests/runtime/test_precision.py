"""Arithmetic in bfloat16: what autocast does in one process, up to the rounding of sums in another order."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.graph import zoo
from soaprl.runtime.program import Piece
from soaprl.runtime.training import graph_of_model, initialize
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Strategy
from tests.runtime.test_micro_batches import pipeline
from tests.runtime.test_training import data_parallel, model_parallel, momentum

NUM_STEPS = 5


class Stack(nn.Module):
    """Linear layers, and a loss over classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return nn.functional.cross_entropy(self.out(x), labels)


def stack() -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return Stack(), (torch.randn(16, 32), torch.randint(8, (16,)))


def gpt() -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    options = {"num_layers": 1, "width": 32, "num_heads": 2, "vocabulary": 17, "sequence": 6, "dropout": 0.0}
    module, args, *_ = zoo.build("gpt2", 16, **options)
    return module, tuple(args)


def autocast_losses(module: nn.Module, batch: tuple[Any, ...], *, enabled: bool) -> list[float]:
    module = copy.deepcopy(module)
    optimizer, losses = momentum(list(module.named_parameters())), []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [stack, gpt], ids=["stack", "gpt"])
def test_split_training_in_bfloat16_is_autocast_training(make: Any) -> None:
    module, batch = make()
    graph = graph_of_model(module, batch)
    expected = autocast_losses(module, batch, enabled=True)
    exact = autocast_losses(module, batch, enabled=False)
    assert expected != exact
    strategies: dict[str, Strategy] = {
        "one rank": data_parallel(graph, 1),
        "data-parallel": data_parallel(graph, 4),
        "model-parallel": model_parallel(graph, 3),
        "pipeline": pipeline(graph, 2, 4, Schedule.ONE_F_ONE_B),
    }
    for what, strategy in strategies.items():
        runtime = initialize(module, strategy, batch, optimizer=momentum, graph=graph, precision="bfloat16")
        found = [runtime.step(*batch).item() for _ in range(NUM_STEPS)]
        # bfloat16 has 8 bits: one part in 256.
        assert found == pytest.approx(expected, rel=2**-7), what
        assert found != pytest.approx(exact, rel=1e-6), f"{what}: nothing was computed in bfloat16"
        for state in runtime.ranks.states:
            for parameter in state.parameters.values():
                assert parameter.dtype is torch.float32
                assert parameter.grad is None or parameter.grad.dtype is torch.float32


def test_what_goes_between_ranks_has_the_type_of_the_graph() -> None:
    module, batch = stack()
    graph = graph_of_model(module, batch)
    runtime = initialize(
        module, model_parallel(graph, 3), batch, optimizer=momentum, graph=graph, precision="bfloat16"
    )
    found: dict[Piece, torch.dtype] = {}
    for state in runtime.ranks.states:
        incoming = state.incoming

        def watched(message: Any, direction: Any, contents: Any, incoming: Any = incoming) -> None:
            found.update({piece: c.dtype for piece, c in zip(message.pieces, contents, strict=True)})
            incoming(message, direction, contents)

        state.incoming = watched
    runtime.step(*batch)
    assert found
    assert set(found.values()) == {torch.float32}
