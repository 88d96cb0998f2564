"""What users wrap around their models: no gradients, autocast, checkpoints, compilation, control flow."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from soaprl.errors import CaptureError
from soaprl.graph.capture import capture, capture_model, graph_from_factory, load_factory, parse_user_file
from soaprl.graph.lower import lower
from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.graph.rules import default_rules
from soaprl.graph.rules.base import Node, RuleTable, Value

Made = tuple[nn.Module, tuple[Any, ...]]


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.last = nn.Linear(16, 4)

    def between(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(x)).square().mean()


class Frozen(TwoLayers):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.first(x)


class PartlyFrozen(TwoLayers):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x.sin()
            with torch.enable_grad():
                return self.first(x)


class Autocast(TwoLayers):
    def between(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.first[0](x).float()


class Checkpointed(TwoLayers):
    def between(self, x: Tensor) -> Tensor:
        return checkpoint(self.first, x, use_reentrant=True)


def graph_of(make: Callable[[], nn.Module], *, coarsened: bool = True) -> OperatorGraph:
    return graph_from_factory(
        lambda batch: (make(), (torch.zeros(batch, 8),)), 4, name="m", coarsened=coarsened
    )


def backward(graph: OperatorGraph) -> dict[str, bool]:
    return {operator.name: operator.has_backward for operator in graph.operators}


def warnings(graph: OperatorGraph) -> list[str]:
    return [note for note in graph.notes if note.startswith("warning")]


def test_what_runs_without_gradients_has_no_backward_pass() -> None:
    plain, frozen = graph_of(TwoLayers), graph_of(Frozen)
    assert list(backward(frozen)) == list(backward(plain))
    assert all(backward(plain).values())
    assert backward(frozen) == {name: not name.startswith("first") for name in backward(plain)}


def test_gradients_can_be_switched_on_again_within() -> None:
    has_backward = backward(graph_of(PartlyFrozen))
    assert has_backward.pop("sin") is False
    assert has_backward == backward(graph_of(TwoLayers))


def test_autocast_keeps_the_operators_and_changes_the_dtypes() -> None:
    graph = graph_of(Autocast, coarsened=False)
    linear = graph.operators[graph.index["first.0"]]
    assert graph.tensors[linear.outputs[0].tensor].dtype == "bfloat16"
    assert linear.has_backward


@pytest.mark.parametrize(
    "wrap", [Checkpointed, lambda: torch.compile(TwoLayers())], ids=["checkpoint", "compile"]
)
def test_a_checkpointed_or_compiled_model_is_the_model(wrap: Callable[[], nn.Module]) -> None:
    plain, wrapped = graph_of(TwoLayers), graph_of(wrap)
    assert wrapped.operators == plain.operators
    assert wrapped.tensors == plain.tensors


def test_checkpoints_work_again_after_capture() -> None:
    graph_of(Checkpointed)
    model, x = Checkpointed(), torch.randn(4, 8, requires_grad=True)
    loss = model(x)
    # Recomputation hides the layers inside from the graph of gradients.
    assert "CheckpointFunctionBackward" in {type(node).__name__ for node in nodes_behind(loss.grad_fn)}


def nodes_behind(function: Any) -> list[Any]:
    return (
        []
        if function is None
        else [function, *(n for f, _ in function.next_functions for n in nodes_behind(f))]
    )


def test_spectral_normalization_updates_its_buffers_without_gradients() -> None:
    # Its power iteration runs under no_grad and writes through out=.
    program = capture(
        lambda batch: (parametrizations.spectral_norm(nn.Linear(8, 16)), (torch.zeros(batch, 8),)),
        4,
        name="m",
    )
    divisions = [node for node in program.nodes if node.target == "aten.div.Tensor"]
    assert len(divisions) == 3
    iterated, iterated_again, weight = divisions
    assert all(not node.kwargs for node in divisions)
    assert not program.values[iterated.results[0]].requires_grad
    assert not program.values[iterated_again.results[0]].requires_grad
    assert program.values[weight.results[0]].requires_grad


class Lifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - torch.arange(8.0)) / torch.tensor([0.5] * 8)).mean()


def test_a_constant_made_in_forward_is_there_on_every_device() -> None:
    graph = graph_of(Lifted)
    lifted = [t for t in graph.tensors if t.name.startswith("lifted_tensor")]
    assert [(t.role, t.requires_grad) for t in lifted] == [(TensorRole.BUFFER, False)]
    assert not warnings(graph)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,)).mean()


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].mean()


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise AssertionError("Torch not compiled with CUDA enabled\nmore lines")


class Leaving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sys.exit(3)


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Branching, "calls cond .* without control flow"),
        (Selecting, "DynamicOutputShapeException.* captured without data"),
        (Moving, "on the CPU$"),
        (Leaving, "SystemExit: 3"),
        (Integers, "^the model returns no floating-point tensor"),
        (lambda: torch.jit.script(nn.Linear(8, 4)), "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_what_cannot_be_captured_is_said_in_one_line(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        graph_of(make)
    assert "\n" not in str(caught.value)


def test_a_failure_is_placed_in_the_users_code() -> None:
    line = Selecting.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"\(line {line} of test_capture_modes\.py\)"):
        graph_of(Selecting)


def test_a_model_without_gradients_is_warned_of() -> None:
    graph = graph_of(lambda: nn.Linear(8, 4).requires_grad_(False))
    assert len(warnings(graph)) == 1
    assert "no gradient" in warnings(graph)[0]
    assert not any(backward(graph).values())


class Mapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row.sum())(x).mean()


def test_functions_are_named_equally_in_every_process() -> None:
    # Functions print with their address.
    graph = graph_of(Mapped)
    assert any("_add_batch_dim" in warning for warning in warnings(graph))
    assert " at 0x" not in str(graph)


def test_a_rule_that_raises_costs_the_splits_of_its_call_and_is_named() -> None:
    rules, table = default_rules(), RuleTable()

    @table.register(*(target for target in rules.targets() if target != "aten.relu"))
    def rule(node: Node, values: tuple[Value, ...]) -> Any:
        return rules.apply(node, values)

    @table.register("aten.relu")
    def broken(node: Node, values: tuple[Value, ...]) -> Any:
        raise IndexError("tuple index out of range")

    program = capture(lambda batch: (TwoLayers(), (torch.zeros(batch, 8),)), 4, name="m")
    lowered = lower(program, table)
    assert lowered.failed == {"aten.relu.default": "IndexError: tuple index out of range"}
    assert not lowered.unknown
    assert [op.name for op in lowered.operators if not op.factors] == ["first.2"]


HELPER = "WIDTH = {width}\n"
RELATIVE = """
from torch import nn, zeros
from .helper_of_stranger import WIDTH


def factory(batch_size):
    from helper_of_stranger import WIDTH as again
    assert again > 0
    return nn.Linear(8, WIDTH), (zeros(batch_size, 8),)


loss = lambda batch_size: (nn.Sequential(nn.Linear(8, 1)), (zeros(batch_size, 8),))
"""


def test_a_file_may_import_relative_to_itself_and_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for width in (3, 5):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "net.py").write_text(RELATIVE)
        (folder / "helper_of_stranger.py").write_text(HELPER.format(width=width))
        graph = capture_model(f"{folder / 'net.py'}:factory", 4)
        assert max(t.shape[0] for t in graph.tensors if t.role is TensorRole.PARAMETER) == width
    assert capture_model(f"{folder / 'net.py'}:loss", 4).operators


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"import sys; sys.exit('usage')", "SystemExit: usage"),
        ("# Größe\nname = 'ä'".encode("latin-1"), "SyntaxError"),
        (b"def factory(:", "SyntaxError"),
        (b"import nothing_of_that_name", "nothing_of_that_name"),
    ],
)
def test_a_file_that_cannot_be_run_is_quoted_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "net.py").write_bytes(content)
    with pytest.raises(CaptureError, match=message) as caught:
        load_factory(parse_user_file(f"{tmp_path / 'net.py'}:factory"))
    assert "\n" not in str(caught.value)
