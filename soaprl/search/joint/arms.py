"""The arms of joint search: choices of sharding and micro-batches, each with experts' strategies for it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from soaprl.errors import GraphError
from soaprl.graph.operators import OperatorGraph
from soaprl.search.experts import starting_strategies
from soaprl.search.pipeline import Pipeline, best_first, estimated_pipelines
from soaprl.search.task import SearchTask
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding, Strategy

# With how many pipelines an arm with micro-batches begins, best estimates first.
_NUM_PIPELINES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What no configuration of a single operator decides.

    Attributes:
        sharding: What is sharded.
        micro_batches: Into how many micro-batches the batch is cut.
        starts: Strategies to begin with, by name; no two are equal.
    """

    sharding: Sharding
    micro_batches: int
    starts: tuple[tuple[str, Strategy], ...]

    @property
    def name(self) -> str:
        """For people."""
        return (
            f"{self.sharding}, {self.micro_batches} micro-batches"
            if self.micro_batches > 1
            else (f"sharding {self.sharding}")
        )


class Waves:
    """The arms of a task, in the order in which they are opened.

    A wave is all shardings of one number of micro-batches: first the whole batch, then the other numbers by
    the best estimate of a pipeline, or of accumulation, with so many (`soaprl.search.pipeline`), estimated
    only once they are asked for. A task that asks for a sharding or a number gets arms of that one alone.
    A given start has an arm of its own before all others, and is its only start.

    Args:
        task: The task.
        given: Strategies to begin with, by name.
    """

    def __init__(self, task: SearchTask, given: tuple[tuple[str, Strategy], ...] = ()) -> None:
        self._task = task
        self._first = tuple(_given_arm(name, strategy) for name, strategy in given)
        self._estimates: Iterator[Pipeline] | None = None
        self._estimated: list[Pipeline] = []
        self._by_count: dict[int, tuple[tuple[str, Strategy], ...]] | None = None

    def graph(self, micro_batches: int) -> OperatorGraph:
        """The graph that configurations of an arm are of."""
        if micro_batches not in self._graphs:
            self._graphs[micro_batches] = replace(self._task, micro_batches=micro_batches).part.graph
        return self._graphs[micro_batches]

    def ready(self, number: int) -> bool:
        """Whether `wave` needs no more estimates."""
        return number < self._num_whole or self._by_count is not None

    def prepare(self) -> None:
        """Makes one more of the estimates that the waves with micro-batches need."""
        if self._estimates is None:
            asked = self._task.micro_batches
            self._estimates = estimated_pipelines(self._task.problem, asked if asked > 1 else None)
        try:
            self._estimated.append(next(self._estimates))
        except (StopIteration, GraphError):
            # Where samples depend on each other, the batch is whole, or the task could not be had at all.
            self._by_count = _starts_by_count(self._estimated)

    def wave(self, number: int) -> tuple[Arm, ...]:
        """The arms of a wave; none if there is no such wave."""
        if number < self._num_whole:
            return self._whole if number == len(self._first) else self._first
        while self._by_count is None:
            self.prepare()
        counts = list(self._by_count)[number - self._num_whole :]
        return tuple(_arm(s, counts[0], self._by_count[counts[0]]) for s in self._shardings) if counts else ()

    @property
    def _num_whole(self) -> int:
        """Number of waves that no pipelines are estimated for."""
        return len(self._first) + (self._task.micro_batches == 1)

    @cached_property
    def _graphs(self) -> dict[int, OperatorGraph]:
        return {}

    @cached_property
    def _shardings(self) -> tuple[Sharding, ...]:
        task = self._task
        if task.sharding is not Sharding.NONE:
            return (task.sharding,)
        if task.problem.options.paper or task.problem.cluster.num_devices < 2:
            return (Sharding.NONE,)
        return tuple(Sharding)

    @cached_property
    def _whole(self) -> tuple[Arm, ...]:
        starts = starting_strategies(self._task.problem)
        return tuple(_arm(sharding, 1, starts) for sharding in self._shardings)


def _starts_by_count(found: list[Pipeline]) -> dict[int, tuple[tuple[str, Strategy], ...]]:
    """The starts by number of micro-batches, in the order of the waves."""
    by_count: dict[int, list[Pipeline]] = {}
    for pipeline in best_first(found):
        by_count.setdefault(pipeline.strategy.micro_batches, []).append(pipeline)
    return {number: _starts(group) for number, group in by_count.items()}


def _given_arm(name: str, strategy: Strategy) -> Arm:
    return Arm(sharding=strategy.sharding, micro_batches=strategy.micro_batches, starts=((name, strategy),))


def _arm(sharding: Sharding, number: int, starts: tuple[tuple[str, Strategy], ...]) -> Arm:
    sharded = tuple((name, replace(strategy, sharding=sharding)) for name, strategy in starts)
    return Arm(sharding=sharding, micro_batches=number, starts=sharded)


def _starts(found: list[Pipeline]) -> tuple[tuple[str, Strategy], ...]:
    """The best pipelines with 1F1B, and the best one of several stages with GPipe.

    Those that are not expected to fit come after all others: the first of them by its estimate alone is taken
    as well, because it may fit once state is sharded.
    """
    chosen = found[:_NUM_PIPELINES]
    fastest = min(found, key=lambda pipeline: pipeline.estimated_s)
    chosen += [] if fastest in chosen else [fastest]
    starts = [(_name(pipeline), pipeline.strategy) for pipeline in chosen]
    staged = next((pipeline for pipeline in chosen if pipeline.num_stages > 1), None)
    if staged is not None:
        starts.append((f"{_name(staged)}, gpipe", replace(staged.strategy, schedule=Schedule.GPIPE)))
    return tuple(starts)


def _name(pipeline: Pipeline) -> str:
    return f"{pipeline.num_stages} stages, tensor degree {pipeline.tensor_degree}"
