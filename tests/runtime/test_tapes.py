"""Forward passes that follow each other are one list of calls, and that changes nothing but the time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.runtime.bound_steps import bound_steps
from soaprl.runtime.launch_record import Recorder
from soaprl.runtime.program import Backward, Forward, Update
from soaprl.runtime.sources import read_elsewhere
from soaprl.runtime.tapes import Position, Slots, Tape, TapeCall, TapeTask
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.runtime.test_training import data_parallel, model_parallel, momentum

NUM_LAYERS, NUM_STEPS = 5, 3


class Odd(nn.Module):
    """Layers one after the other, one of them twice, with dropout, normalization and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(NUM_LAYERS))
        self.layers[1].requires_grad_(False)
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(0.25)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).flatten(0, 1)
        for layer in self.layers:
            x = self.dropout(torch.relu(self.norm(layer(x))))
        return self.layers[0](x).square().mean()


class Normalized(nn.Module):
    """A normalization, which is called as often as it is told."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.norm, self.times = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), times

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = self.norm(x)
        return (x * torch.arange(4.0)).square().mean()


class Looking(Normalized):
    """One that looks at the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.norm.running_mean.sum()


def runtime_of(
    model: nn.Module, batch: tuple[Any, ...], strategy_of: Callable[..., Any], n: int
) -> LogicalRuntime:
    graph = graph_of_model(model, batch)
    runtime = initialize(
        model,
        strategy_of(graph, n),
        batch,
        optimizer=lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
        graph=graph,
    )
    assert isinstance(runtime, LogicalRuntime)
    return runtime


def test_layers_of_one_rank_are_one_tape_and_one_backward_pass() -> None:
    runtime = runtime_of(Odd(), (torch.randint(7, (4, 3)),), data_parallel, 1)
    (state,) = runtime.ranks.states
    together, apart = (bound_steps(state, apart=apart) for apart in (False, True))
    assert sum(isinstance(step.step, Forward) for step in together) == 1
    assert sum(isinstance(step.step, Forward) for step in apart) == len(runtime.graph.operators)
    assert sum(isinstance(step.step, Backward) for step in together) == 1
    assert isinstance(together[-1].step, Update)


@pytest.mark.parametrize("strategy_of", [data_parallel, model_parallel])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_followed_rank_trains_to_the_same_bits(strategy_of: Callable[..., Any], num_ranks: int) -> None:
    torch.manual_seed(0)
    model, batches = Odd(), torch.randint(7, (NUM_STEPS, 6, 3))
    found = []
    for followed in (False, True):
        runtime = runtime_of(model, (batches[0],), strategy_of, num_ranks)
        recorder = Recorder(runtime.graph, events=True)
        if followed:
            for state, optimizer in zip(runtime.ranks.states, runtime._optimizers, strict=True):
                recorder.attach(state, optimizer)
        losses = []
        for number, batch in enumerate(batches):
            recorder.begin_step(number + 1)
            losses.append(runtime.step(batch))
        assert bool(recorder.events) is followed
        assert not any(state.num_held for state in runtime.ranks.states)
        found.append((torch.stack(losses), runtime.state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    for name, content in found[0][1].items():
        assert torch.equal(content, found[1][1][name]), name


@pytest.mark.parametrize("times", [1, 2])
def test_running_statistics_are_to_the_bit_those_of_the_model_by_itself(times: int) -> None:
    torch.manual_seed(0)
    model, batches = Normalized(times), torch.randn(NUM_STEPS, 6, 2, 5, 4)
    runtime = runtime_of(model, (batches[0],), data_parallel, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
        assert runtime.step(batch) == loss.detach().double()
    found = runtime.state_dict()
    for name, content in model.state_dict().items():
        assert torch.equal(found[name], content), name


def test_running_statistics_that_somebody_looks_at_change_after_all_have_looked() -> None:
    torch.manual_seed(0)
    model, batch = Looking(1), torch.randn(6, 2, 5, 4)
    runtime = runtime_of(model, (batch,), data_parallel, 2)
    names = {runtime.graph.tensors[k].name for k in read_elsewhere(runtime.graph)}
    assert "norm.running_mean" in names
    assert "norm.running_var" not in names
    assert all("norm.running_mean" not in _in_place(runtime, rank) for rank in range(2))
    assert all("norm.running_var" in _in_place(runtime, rank) for rank in range(1))


def _in_place(runtime: LogicalRuntime, rank: int) -> set[str]:
    return {runtime.graph.tensors[k].name for k in runtime.ranks.states[rank]._buffers.in_place}


def test_a_tape_keeps_what_is_needed_and_says_where_it_was_when_a_call_fails() -> None:
    def broken(slots: Slots) -> Tensor:
        raise ValueError("no")

    slots, position = {0: torch.ones(2)}, Position()
    double = TapeCall(1, lambda s: s[0] * 2, ())
    square = TapeCall(2, lambda s: s[1].square(), (1,))
    tape = Tape(slots, position, [TapeTask(4, (double, square), (0,))], {1: (2,)})
    tape.run()
    assert list(slots) == [2]
    assert slots[2].tolist() == [4.0, 4.0]
    tasks = [
        TapeTask(7, (TapeCall(3, lambda s: s[2] + 1, ()),), ()),
        TapeTask(9, (TapeCall(5, broken, ()),), ()),
    ]
    failing = Tape(slots, position, tasks, {})
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            failing.run()
        assert position.step == 9


def test_a_tape_pauses_between_its_tasks() -> None:
    steps: list[int] = []
    position = Position(between=lambda: steps.append(position.step))
    tasks = [TapeTask(step, (TapeCall(step, lambda s: torch.ones(1), ()),), ()) for step in (3, 5)]
    tape = Tape({}, position, tasks, {})
    for times in (1, 2):
        tape.run()
        assert steps == [3, 5] * times


def test_a_call_that_gives_another_shape_is_noticed_the_first_time() -> None:
    tape = Tape({}, Position(), [TapeTask(0, (TapeCall(1, lambda s: torch.ones(3), ()),), ())], {1: (2,)})
    with pytest.raises(AssertionError, match=r"expected \(2,\), found \(3,\)"):
        tape.run()


class Grouped(nn.Module):
    """A convolution in two groups, and a normalization of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).square().mean()


def test_running_statistics_of_channels_that_lie_apart_are_entered_too() -> None:
    torch.manual_seed(0)
    model, batch = Grouped(), torch.randn(6, 4, 5, 4)
    graph = graph_of_model(model, (batch,))
    configs = []
    for operator in graph.operators:
        # The middle channels of one group and of the other: no view of all six.
        split = any("batch_norm" in call.target for call in operator.body)
        degrees = [3 if split and factor.name == "channel" else 1 for factor in operator.factors]
        configs.append(OpConfig(tuple(degrees), tuple(range(max(degrees)))))
    assert any(config.num_tasks == 3 for config in configs)
    runtime = initialize(model, Strategy(tuple(configs)), (batch,), optimizer=momentum, graph=graph)
    for _ in range(NUM_STEPS):
        model(batch)
        runtime.load_state_dict({**runtime.state_dict(), **dict(model.named_parameters())})
        runtime.step(batch)
    found = runtime.state_dict()
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name], model.state_dict()[name], rtol=1e-5, atol=1e-7)
