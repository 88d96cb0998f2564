"""Goes on training the policy on the model at hand: the cross-entropy method with the policy as distribution.

Rounds of samples side by side; after each, the policy learns the best distinct strategies so far (the elite)
by a few steps of maximum likelihood, teacher-forced. The first round begins with the policy's most probable
strategy, data parallelism and experts, as in `soaprl_agents.searching.samples`. The network that was given is
not changed. (Rubinstein: The Cross-Entropy Method for Combinatorial and Continuous Optimization,
1999; for learned placement see Mirhoseini et al., 2017, who train from nothing for each model.)
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from soaprl_envs.choices import choices
from soaprl_envs.features import problem_features

from soaprl.search.experts import starts_for
from soaprl.search.task import (
    Best,
    Evaluation,
    ProgressReport,
    SearchResult,
    SearchTask,
    improved,
    rank,
    search_result,
)
from soaprl_agents.decoding import ProblemPolicy, sweep
from soaprl_agents.forcing import decision_log_probability, forced
from soaprl_agents.network import Decider
from soaprl_agents.training.learner import seeded

METHOD = "finetune"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """How it is trained.

    Attributes:
        batch: Samples in a round.
        elite: Strategies that are learned.
        steps: Steps of training after a round.
        rate: Learning rate.
        temperature: Of sampling.
    """

    batch: int = 16
    elite: int = 6
    steps: int = 4
    rate: float = 3e-4
    temperature: float = 0.7


class _Elite(NamedTuple):
    """The best distinct choices so far, best first."""

    ranks: tuple[tuple[bool, float], ...]
    chosen: tuple[tuple[int, ...], ...]

    def joined(self, chosen: tuple[int, ...], evaluation: Evaluation, size: int) -> "_Elite":
        """With one more, if it is new and among the best."""
        if chosen in self.chosen:
            return self
        known = sorted([*zip(self.ranks, self.chosen, strict=True), (rank(evaluation), chosen)])[:size]
        return _Elite(tuple(key for key, _ in known), tuple(found for _, found in known))


def search_finetune(
    task: SearchTask, network: Decider, settings: FinetuneSettings | None = None
) -> SearchResult:
    """Sample and train until the budget is spent.

    A KeyboardInterrupt ends it: the best strategy so far is returned.

    Raises:
        SearchError: The budget has no limit.
    """
    task.budget.require_limit(METHOD)
    search = _Finetune(task, network, settings or FinetuneSettings())
    interrupted = False
    try:
        with seeded(task.seed):
            search.run()
    except KeyboardInterrupt:
        interrupted = True
        if search.best is None:
            raise
    assert search.best is not None, "a budget allows at least one evaluation"
    return search_result(
        method=METHOD,
        seed=task.seed,
        best=search.best,
        initial_time_s=search.initial_time_s,
        num_evaluations=search.num_evaluations,
        search_time_s=search.elapsed(),
        interrupted=interrupted,
    )


class _Finetune:
    def __init__(self, task: SearchTask, network: Decider, settings: FinetuneSettings) -> None:
        self._task = task
        self._origin_s = task.clock()
        self._settings = settings
        self._network = copy.deepcopy(network)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=settings.rate)
        self._choices = choices(task.problem)
        self._features = problem_features(self._choices)
        self._rng = np.random.default_rng(task.seed)
        self._elite = _Elite((), ())
        self.best: Best | None = None
        self.initial_time_s = 0.0
        self.num_evaluations = 0

    def elapsed(self) -> float:
        """Search time."""
        return self._task.clock() - self._origin_s

    def run(self) -> None:
        """Rounds until the budget is spent."""
        starts = [self._choices.nearest(strategy) for _, strategy in starts_for(self._task, None)]
        first = True
        while not self._spent():
            sampled = self._sampled()
            if first:
                sampled, first = np.concatenate((sampled[:1], *[s[None] for s in starts], sampled[1:])), False
            for chosen in sampled:
                if self._spent():
                    return
                self._evaluate(chosen)
            self._train()

    def _spent(self) -> bool:
        return self._task.budget.spent(self.num_evaluations, self.elapsed())

    def _sampled(self) -> NDArray[np.int64]:
        policy = ProblemPolicy(self._network, self._choices, self._features)
        contexts = policy.contexts(self._settings.batch)
        return sweep(policy, contexts, self._rng, temperature=self._settings.temperature).chosen

    def _evaluate(self, chosen: NDArray[np.int64]) -> None:
        strategy = self._task.completed(self._choices.strategy(chosen))
        evaluation = self._task.evaluator.evaluate(strategy)
        self.num_evaluations += 1
        if self.best is None:
            self.initial_time_s = evaluation.iteration_time_s
        now = self.elapsed()
        self.best = improved(self.best, strategy, evaluation, number=self.num_evaluations, elapsed_s=now)
        key = tuple(chosen.tolist())
        self._elite = self._elite.joined(key, evaluation, self._settings.elite)
        if self._task.progress is not None:
            self._task.progress(
                ProgressReport(
                    method=METHOD,
                    stage="samples",
                    num_evaluations=self.num_evaluations,
                    elapsed_s=now,
                    best_time_s=self.best.time_s,
                    current_time_s=evaluation.iteration_time_s,
                    num_accepted=0,
                )
            )

    def _train(self) -> None:
        decisions = forced(self._choices, self._features, np.array(self._elite.chosen, np.int64))
        for _ in range(self._settings.steps):
            found = decision_log_probability(self._network, self._features, decisions)
            self._optimizer.zero_grad()
            (-found.mean()).backward()  # type: ignore[no-untyped-call] # torch annotates only a part
            self._optimizer.step()
