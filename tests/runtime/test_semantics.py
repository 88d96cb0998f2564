"""What a strategy must not change: dropout, normalization, running statistics, clipping, schedules, state."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from soaprl.errors import ExecutionError, UnknownNameError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.program import Exchange, ReduceGradients, UpdateBuffers
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.test_training import NUM_STEPS, data_parallel, model_parallel, momentum, trained

CLOSE = {"rtol": 1e-9, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("double")


def split_by(graph: OperatorGraph, factor: str, num_ranks: int) -> Strategy:
    """Every operator along its factor of this name, if it has one."""
    configs = []
    for op in graph.operators:
        degrees = tuple(min(num_ranks, f.max_degree) if f.name == factor else 1 for f in op.factors)
        configs.append(OpConfig(degrees, tuple(range(max(degrees, default=1)))))
    return Strategy(tuple(configs))


def batches(*shape: int) -> list[tuple[Tensor, ...]]:
    return [(torch.randn(4, *shape),) for _ in range(NUM_STEPS)]


def runtime_of(module: nn.Module, batch: tuple[Tensor, ...], strategy: Any, **options: Any) -> LogicalRuntime:
    graph = graph_of_model(module, batch)
    options = {"optimizer": momentum, **options}
    return initialize(module, strategy(graph), batch, graph=graph, **options)


def agree(runtime: LogicalRuntime, data: list, expected: tuple[list[Tensor], dict[str, Tensor]]) -> None:
    losses = [runtime.step(*batch) for batch in data]
    assert torch.allclose(torch.stack(losses), torch.stack(expected[0]), **CLOSE)
    for name, content in runtime.state_dict().items():
        assert torch.allclose(content.double(), expected[1][name].double(), **CLOSE), name


class Normalized(nn.Module):
    """Convolution and batch normalization; the same normalization may be used twice."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.twice = nn.BatchNorm2d(4), twice

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = self.again(y)
        return (self.norm(y) if self.twice else y).square().mean()


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("factor", ["sample", "channel", "height"])
def test_synchronized_normalization_is_that_of_one_process(factor: str, twice: bool) -> None:
    module, data = Normalized(twice=twice), batches(2, 5, 5)
    runtime = runtime_of(module, data[0], lambda g: split_by(g, factor, 3), batch_norm="synchronized")
    agree(runtime, data, trained(module, data, momentum))


def test_running_statistics_of_a_layer_used_twice_are_summed_over_its_ranks() -> None:
    module, data = Normalized(twice=True), batches(2, 5, 5)
    runtime = runtime_of(module, data[0], lambda g: model_parallel(g, 3))
    shared = [s for r in runtime.program.ranks for s in r.steps if isinstance(s, UpdateBuffers)]
    assert all(len(step.group) == 2 for step in shared)
    agree(runtime, data, trained(module, data, momentum))


def test_local_normalization_is_that_of_data_parallel_replicas() -> None:
    module, data = Normalized(), batches(2, 5, 5)
    runtime = runtime_of(module, data[0], lambda g: data_parallel(g, 2), batch_norm="local")
    # Two replicas with half of the batch each; gradients are averaged, buffers are the first one's.
    replicas = [copy.deepcopy(module) for _ in range(2)]
    optimizers = [momentum(list(r.named_parameters())) for r in replicas]
    for (x,) in data:
        losses = []
        for replica, half in zip(replicas, x.chunk(2), strict=True):
            replica.zero_grad()
            losses.append(replica(half))
            losses[-1].backward()
        for first, second in zip(*(r.parameters() for r in replicas), strict=True):
            first.grad = second.grad = (first.grad + second.grad) / 2
        for optimizer in optimizers:
            optimizer.step()
        assert torch.allclose(runtime.step(x), torch.stack(losses).mean(), **CLOSE)
    for name, content in runtime.state_dict().items():
        assert torch.allclose(content.double(), replicas[0].state_dict()[name].double(), **CLOSE), name


def test_frozen_normalization_reads_its_running_statistics() -> None:
    class Frozen(Normalized):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.norm.eval()
            return self

    module, data = Frozen(), batches(2, 5, 5)
    module.norm.running_mean.normal_()
    module.train()
    agree(
        runtime_of(module, data[0], lambda g: split_by(g, "sample", 2)), data, trained(module, data, momentum)
    )


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.dropout(self.first(x), 0.5)).square().mean()


def test_dropout_depends_on_seed_and_iteration_and_not_on_the_strategy() -> None:
    module, (batch, *_) = Dropping(), batches(6)
    losses = {}
    for seed in (0, 1):
        for strategy in (data_parallel, model_parallel):
            runtime = runtime_of(module, batch, lambda g, s=strategy: s(g, 2), seed=seed)
            losses[seed, strategy.__name__] = torch.stack([runtime.step(*batch) for _ in range(2)])
    assert torch.allclose(losses[0, "data_parallel"], losses[0, "model_parallel"], **CLOSE)
    assert torch.allclose(losses[1, "data_parallel"], losses[1, "model_parallel"], **CLOSE)
    assert not torch.allclose(losses[0, "data_parallel"], losses[1, "data_parallel"])


@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(clip: float) -> None:
    module, data = Normalized(), batches(2, 5, 5)
    expected = trained(module, data, momentum, clip=clip)
    for strategy in (data_parallel, model_parallel):
        agree(
            runtime_of(
                module,
                data[0],
                lambda g, s=strategy: s(g, 3),
                max_gradient_norm=clip,
                batch_norm="synchronized",
            ),
            data,
            expected,
        )


def test_the_learning_rate_follows_its_schedule() -> None:
    module, data = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), batches(6)

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.3)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).square().mean()

    whole = Loss()
    expected = trained(whole, data, momentum, schedule=schedule)
    agree(runtime_of(whole, data[0], lambda g: data_parallel(g, 4), schedule=schedule), data, expected)


class Words(nn.Module):
    """A table of which only the first rows are ever read, a tied output, a literal, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 6))
        self.words, self.out = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.out.weight = self.words.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.scale = torch.tensor(0.5)
        self.register_buffer("shift", torch.randn(6), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.table[: ids.shape[1]] * self.scale + self.shift
        return F.cross_entropy(self.out(x * torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0])).mT, ids)


@pytest.mark.parametrize("make", [momentum, lambda named: torch.optim.AdamW(named, lr=0.1, weight_decay=0.3)])
def test_tied_unread_and_unused_parameters_are_trained_as_in_one_process(make: Any) -> None:
    module = Words()
    data = [(torch.randint(0, 7, (4, 5)),) for _ in range(NUM_STEPS)]
    expected = trained(module, data, make)
    for strategy in (
        lambda g: data_parallel(g, 3),
        lambda g: model_parallel(g, 3),
        lambda g: split_by(g, "vocabulary", 3),
        lambda g: split_by(g, "channel", 3),
    ):
        agree(runtime_of(module, data[0], strategy, optimizer=make), data, expected)


def test_a_state_dict_can_be_loaded_under_another_strategy() -> None:
    module, data = Normalized(), batches(2, 5, 5)
    options = {"batch_norm": "synchronized", "optimizer": lambda named: torch.optim.SGD(named, lr=0.1)}
    expected = trained(module, data, options["optimizer"])
    first = runtime_of(module, data[0], lambda g: data_parallel(g, 4), **options)
    first.step(*data[0])
    second = runtime_of(module, data[0], lambda g: split_by(g, "channel", 2), **options)
    second.load_state_dict(first.state_dict())
    agree(second, data[1:], (expected[0][1:], expected[1]))


def test_capturing_a_model_leaves_its_weights_and_buffers_alone() -> None:
    module, (batch, *_) = Normalized(), batches(2, 5, 5)
    before = copy.deepcopy(module.state_dict())
    runtime = runtime_of(module, batch, lambda g: data_parallel(g, 2))
    runtime.step(*batch)
    for name, content in module.state_dict().items():
        assert torch.equal(content, before[name]), name
    module.load_state_dict(runtime.state_dict())


def test_optimizers_that_need_whole_parameters_are_refused_for_parts_of_them() -> None:
    module, (batch, *_) = Dropping(), batches(6)

    def factored(named: Any) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(named)

    with pytest.raises(
        ExecutionError, match=r"Adafactor may need whole parameters, and rank 0 updates only a part"
    ):
        runtime_of(module, batch, lambda g: split_by(g, "channel", 2), optimizer=factored)
    runtime_of(module, batch, lambda g: data_parallel(g, 2), optimizer=factored).step(*batch)


def test_a_batch_of_another_shape_is_refused() -> None:
    module, (batch, *_) = Dropping(), batches(6)
    runtime = runtime_of(module, batch, lambda g: data_parallel(g, 2))
    with pytest.raises(ExecutionError, match=r"expected float64 \(4, 6\), found float64 \(3, 6\)"):
        runtime.step(torch.randn(3, 6))
    with pytest.raises(ExecutionError, match="has 1 tensors, found 2"):
        runtime.step(torch.randn(4, 6), torch.randn(4, 6))


def test_an_unknown_executor_is_refused() -> None:
    module, (batch, *_) = Dropping(), batches(6)
    with pytest.raises(UnknownNameError, match="executor 'logicl'"):
        runtime_of(module, batch, lambda g: data_parallel(g, 2), executor="logicl")


def test_gradients_of_replicas_are_reduced_once_in_buckets_and_nothing_else_moves() -> None:
    module, (batch, *_) = Dropping(), batches(6)
    runtime = runtime_of(module, batch, lambda g: data_parallel(g, 4))
    for rank in runtime.program.ranks:
        (bucket,) = [s for s in rank.steps if isinstance(s, ReduceGradients)]
        # Weights of 6 x 8 and 8 x 2 and biases of 8 and 2, in float64.
        assert bucket.num_bytes == 8 * (48 + 8 + 16 + 2)
        assert bucket.group == (0, 1, 2, 3)
        assert not [s for s in rank.steps if isinstance(s, Exchange)]


class Bags(nn.Module):
    """Words, alone and in bags, that are to be told apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bags = nn.Embedding(6, 4), nn.EmbeddingBag(6, 4, mode="sum")
        self.classes = nn.Linear(4, 6)

    def forward(self, words: Tensor, bags: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.classes(self.words(words) + self.bags(bags)), labels)


@pytest.mark.parametrize("wrong", [6, -1])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_ids_and_classes_that_do_not_exist_are_refused_however_they_are_split(
    place: int, wrong: int, num_ranks: int
) -> None:
    good = (torch.tensor([0, 5]), torch.tensor([[1, 2], [3, 4]]), torch.tensor([5, -100]))
    bad = tuple(x.clone() for x in good)
    bad[place].view(-1)[0] = wrong

    def rows(graph: OperatorGraph) -> Strategy:
        found = [split_by(graph, name, num_ranks).configs for name in ("vocabulary", "channel", "classes")]
        return Strategy(tuple(max(each, key=lambda c: c.num_tasks) for each in zip(*found, strict=True)))

    runtime = runtime_of(Bags(), good, rows)
    assert runtime.step(*good).isfinite()
    with pytest.raises((IndexError, ExecutionError, RuntimeError)):
        runtime.step(*bad)
