"""Samples of a policy, the best one kept; later ones begin where the best one is.

The first evaluation is the policy's most probable strategy, then come data parallelism and the experts (each
counted as an evaluation), then samples, in batches side by side. The first batch, and every second one after
it, is decoded from data parallelism in two sweeps: the second decides each operator again with all others
known, before anything is evaluated. The other batches refine the best strategy so far in one sweep. What has
been evaluated is not evaluated again.

Batch b is a function of (seed, b) and of what it refines, so that a search that goes on from its state file
makes the same samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soaprl.search.experts import starts_for
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, rank
from soaprl.strategy.strategy import Strategy
from soaprl_agents.decoding import ProblemPolicy, ready_policy, spread_temperatures, sweep
from soaprl_agents.network import Decider

METHOD = "policy"

IntArray = NDArray[np.int64]
Chosen = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
        first: Samples of the first batch: the coolest of a whole one.
        batch: Samples of the others.
        num_batches: Batches at most.
        coolest: Lowest temperature of the samples of a batch (`spread_temperatures`).
        warmest: Highest temperature.
    """

    first: int = 7
    batch: int = 16
    num_batches: int = 9
    coolest: float = 0.2
    warmest: float = 0.8


def search_samples(
    task: SearchTask, network: Decider, settings: SampleSettings | None = None
) -> SearchResult:
    """Sample strategies until the budget or `SampleSettings.num_batches` is reached.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    chosen = settings or SampleSettings()
    return run_procedure(task, Samples(task, lambda: ready_policy(network, task.problem), chosen))


def decode_batch(
    policy: ProblemPolicy,
    seed: tuple[int, int],
    settings: SampleSettings,
    *,
    size: int,
    refined: IntArray | None = None,
) -> IntArray:
    """Samples side by side, the most probable one first, the others from cool to warm.

    On 27 more synthetic problems, where something is to be gained, three policies' best of 16 took exp(0.041)
    times the best time known with one sweep, exp(0.033) with two, and exp(0.029) when the second half of them
    refines the best.

    Args:
        policy: Decides.
        seed: Of the random numbers.
        settings: Temperatures.
        size: Samples.
        refined: The choices [N] that are refined in one sweep; None: data parallelism, in two.

    Returns:
        The candidate of each operator, shape [size, N].
    """
    contexts, rng = policy.contexts(size), np.random.default_rng(seed)
    if refined is not None:
        contexts.assign(refined)
    whole = max(size, settings.batch)
    temperature = spread_temperatures(whole, coolest=settings.coolest, warmest=settings.warmest)[:size]
    for _ in range(2 if refined is None else 1):
        sweep(policy, contexts, rng, temperature=temperature)
    return contexts.chosen.copy()


class Sampler:
    """The first batch and the starts, for searches that go on otherwise.

    Attributes:
        num_strategies: How many there are.
    """

    def __init__(
        self, task: SearchTask, policy: ProblemPolicy, starts: tuple[Strategy, ...], settings: SampleSettings
    ) -> None:
        self._task = task
        self._policy = policy
        self._starts = starts
        self._settings = settings
        self.num_strategies = settings.first + len(starts)

    def strategy(self, number: int) -> Strategy:
        """Strategy `number`, from 0: the most probable one, the starts, samples."""
        if 0 < number <= len(self._starts):
            return self._starts[number - 1]
        chosen = self._chosen[0 if number == 0 else number - len(self._starts)]
        return self._task.completed(self._policy.choices.strategy(chosen))

    @cached_property
    def _chosen(self) -> IntArray:
        return decode_batch(self._policy, (self._task.seed, 0), self._settings, size=self._settings.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a search by samples stands: before a start, or before sample `next` of the last batch.

    Attributes:
        refined: What each batch so far refines; None: nothing.
        next: Number of the sample in the last batch.
        num_starts: Starts evaluated.
        best: The best strategy; None before the first.
        last_s: The time of the last one evaluated.
    """

    refined: tuple[Chosen | None, ...] = (None,)
    next: int = 0
    num_starts: int = 0
    best: Scored | None = None
    last_s: float = inf


class Samples:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self, task: SearchTask, make_policy: Callable[[], ProblemPolicy], settings: SampleSettings
    ) -> None:
        named = starts_for(task, None)
        self._task = task
        self._make_policy = make_policy
        self._names = ", ".join(name for name, _ in named)
        self._starts = tuple(strategy for _, strategy in named)
        self._settings = settings
        self._batches: list[tuple[Chosen, ...]] = []

    @cached_property
    def _policy(self) -> ProblemPolicy:
        # Made when the first strategy is asked for: reading and encoding the problem is search time.
        return self._make_policy()

    @cached_property
    def _known(self) -> set[Chosen]:
        """What is in a batch, or is a start; it grows."""
        nearest = ((start, self._nearest(start)) for start in self._starts)
        return {chosen for start, chosen in nearest if self._strategy(chosen) == start}

    @property
    def settings(self) -> Signature:
        """The settings and the experts' names."""
        chosen = self._settings
        return {
            "starts": self._names,
            "first": chosen.first,
            "batch": chosen.batch,
            "num_batches": chosen.num_batches,
            "coolest": chosen.coolest,
            "warmest": chosen.warmest,
        }

    def begin(self) -> _Place:
        """Before the first sample."""
        return _Place()

    def propose(self, state: _Place) -> Trial | None:
        """The next strategy; None after the last."""
        if self._at_start(state):
            return Trial(self._starts[state.num_starts])
        settled = self._settled(state)
        batch = self._batch(settled.refined)
        return Trial(self._strategy(batch[settled.next])) if settled.next < len(batch) else None

    def advance(self, state: _Place, trial: Trial, evaluation: Evaluation | None) -> _Place:
        """One further."""
        assert evaluation is not None, "samples are evaluated without a limit"
        if self._at_start(state):
            place = replace(state, num_starts=state.num_starts + 1)
        else:
            place = self._settled(state)
            place = replace(place, next=place.next + 1)
        better = state.best is None or rank(evaluation) < rank(state.best.evaluation)
        best = Scored(trial.strategy, evaluation) if better else state.best
        return replace(place, best=best, last_s=evaluation.iteration_time_s)

    def view(self, state: _Place) -> View:
        """The batch and the sample."""
        return View(f"batch {len(state.refined)}, sample {state.next}", state.last_s, 0)

    def pack(self, state: _Place) -> dict[str, Any]:
        """What the batches refine, and the best; samples are made again."""
        return {
            "refined": [None if chosen is None else list(chosen) for chosen in state.refined],
            "next": state.next,
            "num_starts": state.num_starts,
            "best": None if state.best is None else packed(state.best),
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> _Place:
        """The place that was packed."""
        refined = tuple(None if one is None else tuple(map(int, one)) for one in content["refined"])
        return _Place(
            refined=refined,
            next=int(content["next"]),
            num_starts=int(content["num_starts"]),
            best=None if content["best"] is None else replay(content["best"]),
        )

    def _at_start(self, state: _Place) -> bool:
        """Whether a start comes next: after the first sample."""
        return state.next > 0 and state.num_starts < len(self._starts)

    def _settled(self, state: _Place) -> _Place:
        """`state` in a batch that has a sample left, if there is one."""
        while state.next == len(self._batch(state.refined)):
            number = len(state.refined)
            if number == self._settings.num_batches:
                break
            assert state.best is not None, "the first batch is not empty"
            refined = self._nearest(state.best.strategy) if number % 2 else None
            state = replace(state, refined=(*state.refined, refined), next=0)
        return state

    def _batch(self, refined: tuple[Chosen | None, ...]) -> tuple[Chosen, ...]:
        """The samples of the last of the batches that refine so, without those that came before."""
        for number in range(len(self._batches), len(refined)):
            base, settings = refined[number], self._settings
            found = decode_batch(
                self._policy,
                (self._task.seed, number),
                settings,
                size=settings.batch if number else settings.first,
                refined=None if base is None else np.array(base),
            )
            rows = dict.fromkeys(tuple(row) for row in found.tolist())
            # The most probable strategy is the first evaluation, also where it is a start.
            fresh = tuple(
                row for place, row in enumerate(rows) if row not in self._known or number == place == 0
            )
            self._batches.append(fresh)
            self._known.update(fresh)
        return self._batches[len(refined) - 1]

    def _strategy(self, chosen: Chosen) -> Strategy:
        return self._task.completed(self._policy.choices.strategy(chosen))

    def _nearest(self, strategy: Strategy) -> Chosen:
        return tuple(self._policy.choices.nearest(strategy).tolist())
