"""Checkpoints: what is saved under one strategy goes on under any other, and is whole or absent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from soaprl.errors import ExecutionError
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.checkpoint import (
    checkpoint_facts,
    export_state_dict,
    latest_checkpoint,
    load_checkpoint,
    read_state_dict,
    save_checkpoint,
)
from soaprl.runtime.checkpoint_storage import packed, unpacked
from soaprl.runtime.threads import one_thread
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.cases import in_double

NUM_SAMPLES = 8


class Tagger(nn.Module):
    """Tied embeddings, a fused projection, batch normalization, dropout and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.hidden, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.down = nn.Linear(12, 6)
        self.unused = nn.Parameter(torch.randn(3))
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.norm(self.hidden(self.words(ids)).relu())
        x = F.dropout(self.down(x), 0.25, self.training)
        return F.cross_entropy(self.out(x), labels)


def model() -> nn.Module:
    torch.manual_seed(0)
    with in_double():
        return Tagger()


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    ids, labels = (torch.randint(9, (NUM_SAMPLES,), generator=generator) for _ in range(2))
    return ids, labels


def split(graph: OperatorGraph, kinds: tuple[FactorKind, ...], degree: int, devices: int) -> Strategy:
    """Each operator along the first splittable factor of one of these kinds."""
    configs = []
    for number, operator in enumerate(graph.operators):
        degrees = [1] * len(operator.factors)
        for f, factor in enumerate(operator.factors):
            if factor.kind in kinds and factor.splittable and factor.max_degree >= degree:
                degrees[f] = degree
                break
        count = max(degrees, default=1)
        configs.append(OpConfig(tuple(degrees), tuple((number + k) % devices for k in range(count))))
    return Strategy(tuple(configs))


def adam(named: Any) -> torch.optim.Optimizer:
    pairs = list(named)
    decayed = [pair for pair in pairs if pair[1].dim() > 1]
    rest = [pair for pair in pairs if pair[1].dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.03)


def momentum(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(named, lr=0.1, momentum=0.9)


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


Make = Callable[..., LogicalRuntime]


@pytest.fixture(scope="module")
def graph() -> OperatorGraph:
    return graph_of_model(model(), batch(0))


@pytest.fixture
def start(graph: OperatorGraph) -> Make:
    """Starts a training: of samples on 2 ranks by default."""

    def make(
        kinds: tuple[FactorKind, ...] = (FactorKind.SAMPLE,),
        degree: int = 2,
        devices: int = 2,
        optimizer: Any = adam,
    ) -> LogicalRuntime:
        return initialize(
            model(),
            split(graph, kinds, degree, devices),
            batch(0),
            optimizer=optimizer,
            schedule=halving,
            batch_norm="synchronized",
            seed=5,
            graph=graph,
        )

    return make


def train(runtime: LogicalRuntime, first: int, last: int) -> list[float]:
    with one_thread():
        return [runtime.step(*batch(number)).item() for number in range(first, last)]


@pytest.mark.parametrize("optimizer", [adam, momentum])
def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one_to_the_bit(
    start: Make, tmp_path: Path, optimizer: Any
) -> None:
    whole = start(optimizer=optimizer)
    expected = train(whole, 0, 6)
    train(first := start(optimizer=optimizer), 0, 3)
    path = save_checkpoint(first, tmp_path)
    second = start(optimizer=optimizer)
    load_checkpoint(second, path)
    assert train(second, 3, 6) == expected[3:]
    state = second.state_dict()
    for name, content in whole.state_dict().items():
        assert torch.equal(state[name], content), name


@pytest.mark.parametrize(
    ("kinds", "degree", "devices"),
    [
        ((FactorKind.SAMPLE,), 4, 4),
        ((FactorKind.PARAMETER,), 3, 3),
        ((FactorKind.PARAMETER, FactorKind.REDUCTION), 2, 5),
        ((), 1, 1),
    ],
)
def test_a_checkpoint_goes_on_under_another_strategy_and_number_of_ranks(
    start: Make, tmp_path: Path, kinds: tuple[FactorKind, ...], degree: int, devices: int
) -> None:
    whole = start()
    expected = train(whole, 0, 5)
    train(first := start(), 0, 2)
    path = save_checkpoint(first, tmp_path)
    other = start(kinds, degree, devices)
    facts = load_checkpoint(other, path)
    assert (facts.num_iterations, facts.num_ranks, facts.seed) == (2, 2, 5)
    assert train(other, 2, 5) == pytest.approx(expected[2:], rel=1e-12)
    # And back: what the other strategy saves, the first one reads.
    path = save_checkpoint(other, tmp_path)
    state = read_state_dict(path)
    for name, content in whole.state_dict().items():
        assert torch.allclose(state[name].double(), content.double(), rtol=1e-10, atol=1e-12), name


def test_the_exported_state_dict_is_that_of_the_model(start: Make, tmp_path: Path) -> None:
    runtime = start((FactorKind.PARAMETER,), 3, 3)
    train(runtime, 0, 2)
    export_state_dict(save_checkpoint(runtime, tmp_path), tmp_path / "model.pt")
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = runtime.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], content) for name, content in expected.items())
    assert found["norm.num_batches_tracked"] == 2
    assert found["out.weight"].data_ptr() == found["words.weight"].data_ptr()
    fresh = model()
    fresh.load_state_dict(found)


def test_the_generator_of_pytorch_goes_on_too(start: Make, tmp_path: Path) -> None:
    runtime = start()
    torch.manual_seed(3)
    path = save_checkpoint(runtime, tmp_path)
    expected = torch.rand(4)
    torch.manual_seed(4)
    load_checkpoint(runtime, path)
    assert torch.equal(torch.rand(4), expected)


def test_only_whole_checkpoints_count_and_the_latest_are_kept(start: Make, tmp_path: Path) -> None:
    runtime = start()
    assert latest_checkpoint(tmp_path / "none") is None
    for number in range(4):
        train(runtime, number, number + 1)
        save_checkpoint(runtime, tmp_path, num_kept=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000003", "step-00000004"]
    last = latest_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "step-00000004"
    data = next(last.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000003"
    with pytest.raises(ExecutionError, match="not whole"):
        load_checkpoint(runtime, last)


def test_a_failure_while_writing_leaves_the_earlier_checkpoint(start: Make, tmp_path: Path) -> None:
    runtime = start()
    train(runtime, 0, 1)
    kept = save_checkpoint(runtime, tmp_path)
    train(runtime, 1, 2)
    (tmp_path / ".step-00000002.partial").write_text("in the way of the folder of this name")
    with pytest.raises(ExecutionError, match="cannot write the checkpoint"):
        save_checkpoint(runtime, tmp_path)
    assert latest_checkpoint(tmp_path) == kept
    assert checkpoint_facts(kept).num_iterations == 1


def test_what_a_killed_process_left_is_ignored_and_then_removed(start: Make, tmp_path: Path) -> None:
    runtime = start()
    train(runtime, 0, 1)
    kept = save_checkpoint(runtime, tmp_path)
    left = tmp_path / ".step-00000002.partial"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == kept
    train(runtime, 1, 2)
    assert save_checkpoint(runtime, tmp_path).name == "step-00000002"
    assert not left.exists()


def test_a_checkpoint_of_another_model_is_refused_by_name(start: Make, tmp_path: Path) -> None:
    path = save_checkpoint(start(), tmp_path)
    other = nn.Sequential(nn.Linear(4, 1))
    batch = (torch.randn(4, 4),)
    graph = graph_of_model(other, batch)
    runtime = initialize(other, split(graph, (), 1, 1), batch, optimizer=momentum, graph=graph)
    with pytest.raises(ExecutionError, match=r"another model.*0\.weight|another model.*unused"):
        load_checkpoint(runtime, path)


def test_other_folders_and_versions_are_told_as_such(start: Make, tmp_path: Path) -> None:
    path = save_checkpoint(start(), tmp_path)
    with pytest.raises(ExecutionError, match="expected a checkpoint"):
        checkpoint_facts(tmp_path)
    content = json.loads((path / "training.json").read_text())
    (path / "training.json").write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(ExecutionError, match="another version"):
        checkpoint_facts(path)


def test_plain_values_are_packed_and_objects_refused() -> None:
    content = {"lr": 0.1, "betas": (0.9, 0.999), "name": "x", "steps": [1, None], "t": torch.ones(2)}
    found = unpacked(packed(content))
    assert found.pop("t").tolist() == [1, 1]
    assert found == {key: value for key, value in content.items() if key != "t"}
    with pytest.raises(ExecutionError, match="objects"):
        packed({"path": Path()})
