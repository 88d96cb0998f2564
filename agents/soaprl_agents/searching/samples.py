"""Samples of a policy, the best one kept.

The first evaluation is the policy's most probable strategy, then come data parallelism and the experts (each
counted as an evaluation), then samples. Samples are made in batches side by side: every second batch refines
the one before, deciding each operator again with all others known. Batch b is a function of (seed, b) and of
the batch before, so that a search that goes on from its state file makes the same samples.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from soaprl.search.experts import starts_for
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Trial, View, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask
from soaprl.strategy.strategy import Strategy
from soaprl_agents.decoding import ProblemPolicy, ready_policy, spread_temperatures, sweep
from soaprl_agents.network import PolicyNetwork

METHOD = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
        batch: Samples side by side.
        num_batches: Batches at most; every second one refines the one before.
        coolest: Lowest temperature of the samples of a batch (`spread_temperatures`).
        warmest: Highest temperature.
    """

    batch: int = 16
    num_batches: int = 8
    coolest: float = 0.2
    warmest: float = 0.8


def search_samples(
    task: SearchTask, network: PolicyNetwork, settings: SampleSettings | None = None
) -> SearchResult:
    """Sample strategies until the budget or `SampleSettings.num_batches` is reached.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    return run_procedure(task, Samples(task, network, settings or SampleSettings()))


class Sampler:
    """Strategies in the order in which the module says they are evaluated."""

    def __init__(
        self, task: SearchTask, policy: ProblemPolicy, starts: tuple[Strategy, ...], settings: SampleSettings
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._task = task
        self._starts = starts
        self._contexts = policy.contexts(settings.batch)
        self._batches: list[list[Strategy]] = []

    @property
    def num_strategies(self) -> int:
        """How many there are at most."""
        return self._settings.batch * self._settings.num_batches + len(self._starts)

    def strategy(self, number: int) -> Strategy:
        """Strategy `number`, from 0."""
        first = number == 0
        if not first and number <= len(self._starts):
            return self._starts[number - 1]
        index = 0 if first else number - len(self._starts)
        batch, row = divmod(index, self._settings.batch)
        while len(self._batches) <= batch:
            self._batches.append(self._next_batch())
        return self._batches[batch][row]

    def _next_batch(self) -> list[Strategy]:
        number, settings = len(self._batches), self._settings
        if number % 2 == 0:
            self._contexts = self._policy.contexts(settings.batch)
        rng = np.random.default_rng((self._task.seed, number))
        decoded = sweep(
            self._policy,
            self._contexts,
            rng,
            temperature=spread_temperatures(
                settings.batch, coolest=settings.coolest, warmest=settings.warmest
            ),
            num_greedy=1 if number < 2 else 0,
        )
        return [self._task.completed(strategy) for strategy in self._policy.strategies(decoded.chosen)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Samples evaluated so far, and the time of the last one."""

    number: int = 0
    last_s: float = inf


class Samples:
    """The procedure; see the module."""

    method = METHOD

    def __init__(self, task: SearchTask, network: PolicyNetwork, settings: SampleSettings) -> None:
        named = starts_for(task, None)
        self._task = task
        self._network = network
        self._names = ", ".join(name for name, _ in named)
        self._starts = tuple(strategy for _, strategy in named)
        self._settings = settings

    @cached_property
    def _sampler(self) -> Sampler:
        # Made when the first strategy is asked for: reading and encoding the problem is search time.
        policy = ready_policy(self._network, self._task.problem)
        return Sampler(self._task, policy, self._starts, self._settings)

    @property
    def settings(self) -> Signature:
        """The settings and the experts' names."""
        chosen = self._settings
        return {
            "starts": self._names,
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
        if state.number == self._sampler.num_strategies:
            return None
        return Trial(self._sampler.strategy(state.number))

    def advance(self, state: _Place, trial: Trial, evaluation: Evaluation | None) -> _Place:
        """One further."""
        del trial
        assert evaluation is not None, "samples are evaluated without a limit"
        return replace(state, number=state.number + 1, last_s=evaluation.iteration_time_s)

    def view(self, state: _Place) -> View:
        """How many samples."""
        return View(f"{state.number} samples", state.last_s, 0)

    def pack(self, state: _Place) -> dict[str, Any]:
        """The number of samples; they are made again."""
        return {"number": state.number}

    def unpack(self, content: dict[str, Any], replay: Replay) -> _Place:
        """After that many samples."""
        return _Place(number=int(content["number"]))
