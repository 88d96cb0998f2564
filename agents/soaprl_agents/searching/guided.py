"""Metropolis-Hastings search that proposes what the policy proposes, in rounds.

It begins with the optimum of OptCNN's objective (`soaprl.search.optcnn`), which takes one evaluation, and
knows layers well but nothing of what runs side by side; then come the policy's most probable strategy, data
parallelism, the experts, and samples of the policy. From the best of these the walk goes in *rounds*:
`GuidedSettings.guided_steps` steps with proposals of the policy (`soaprl_agents.searching.mixture`), then
`GuidedSettings.plain_steps` plain ones, which need no network and are several times as fast. Each step keeps
the distribution that plain Metropolis search samples. The policy finds what is good within a few hundred
evaluations; what is then left is found by many cheap steps.

A round ends early when it has not got better for `GuidedSettings.patience` steps for each operator: few
operators have a local optimum within a hundred steps, and what is better is then several changes away. Every
further round begins somewhere else (`_BEGINNINGS`): at the best strategy so far with some operators that are
neighbours in the program configured at random; at a new sample of the policy; at one that refines the best;
or at data parallelism or an expert. Where a round ends depends on what it found, as any restart may; within a
round every step is a step of the chain of `soaprl_agents.searching.mixture`.

Numbers of step t and of round r are functions of (seed, t) and (seed, r): a search that goes on from its
state file walks the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from soaprl.search.experts import starts_for
from soaprl.search.optcnn import plan_optcnn
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, accepts, rank
from soaprl.strategy.strategy import Strategy
from soaprl_agents.decoding import ProblemPolicy, ready_policy, sweep
from soaprl_agents.network import Decider
from soaprl_agents.searching.mixture import Move, Proposer
from soaprl_agents.searching.samples import Sampler, SampleSettings

METHOD = "guided"
_KICK_STREAM, _SAMPLE_STREAM = 2, 3
_RESAMPLING = 0.8
_UNRANKED = (True, inf)
# Where the rounds after the first one begin, in turn.
_BEGINNINGS = ("kick", "sample", "kick", "refine", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedSettings:
    """How the walk goes.

    Attributes:
        share: Share of the plain proposal in the mixture, above 0.
        beta_relative: beta times the iteration time of the start, as in `soaprl.search.metropolis`.
        num_samples: Samples of the policy before the walk.
        guided_steps: Steps of a round with proposals of the policy.
        plain_steps: Steps of a round without.
        kick: Of the operators at most this share is configured at random where a round begins.
        patience: Steps, for each operator, after which a round ends that has not got better. Of 4, 6, 8 and
            none, on 15 synthetic problems of 6 to 11 operators where search errs (two seeds), strategies took
            2.2, 2.7, 2.2 and 4.6 percent longer than the best known after 1,000 evaluations.
        proposal: The plain proposal.
    """

    share: float = 0.25
    beta_relative: float = 5000.0
    num_samples: int = 16
    guided_steps: int = 1024
    plain_steps: int = 3072
    kick: float = 0.3
    patience: float = 6.0
    proposal: ProposalSettings = field(default_factory=ProposalSettings)


def search_guided(
    task: SearchTask,
    network: Decider,
    settings: GuidedSettings | None = None,
    *,
    start: Strategy | None = None,
) -> SearchResult:
    """Walk until the budget is spent; see the module.

    Args:
        task: What to search.
        network: Proposes.
        settings: How the walk goes.
        start: A strategy to begin with; None: the best of those that the module lists.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    chosen = settings or GuidedSettings()
    return run_procedure(task, Guided(task, lambda: ready_policy(network, task.problem), chosen, start))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a walk stands: before a start, before the first strategy of a round, or before a move.

    Attributes:
        num_starts: Starts evaluated.
        step: The step whose move is evaluated next.
        begun: Rounds that have begun.
        current: The current strategy; None before the first start.
        best: The best strategy; None before the first start.
        scale_s: 1 / beta.
        accepted: Moves accepted.
        gained: The step after the last one that led to the best of its round.
        round_rank: Of the best of the round.
        move: The move of `step`; None before the first strategy of a round.
    """

    num_starts: int = 0
    step: int = 0
    begun: int = 1
    current: Scored | None = None
    best: Scored | None = None
    scale_s: float = 0.0
    accepted: int = 0
    gained: int = 0
    round_rank: tuple[bool, float] = _UNRANKED
    move: Move | None = None


class Guided:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self,
        task: SearchTask,
        make_policy: Callable[[], ProblemPolicy],
        settings: GuidedSettings,
        start: Strategy | None,
    ) -> None:
        self._task = task
        self._make_policy = make_policy
        self._settings = settings
        named = starts_for(task, start)
        self._names = ", ".join(name for name, _ in named)
        self._starts = tuple(strategy for _, strategy in named)
        self._num_starts = len(self._starts) + (1 + settings.num_samples if start is None else 0)
        self._given = start is not None
        self._round_steps = settings.guided_steps + settings.plain_steps

    @cached_property
    def _policy(self) -> ProblemPolicy:
        # Made when the first strategy is asked for: reading and encoding the problem is search time.
        return self._make_policy()

    @cached_property
    def _sampler(self) -> Sampler:
        sampling = SampleSettings(first=max(1, self._settings.num_samples))
        return Sampler(self._task, self._policy, self._starts, sampling)

    @cached_property
    def _proposals(self) -> Proposals:
        problem = self._task.problem
        return Proposals(problem.graph, problem.cluster.num_devices, self._settings.proposal)

    @cached_property
    def _proposer(self) -> Proposer:
        return Proposer(self._policy, self._proposals, self._task.seed)

    @property
    def settings(self) -> Signature:
        """The settings and the starts' names."""
        chosen = self._settings
        return {
            "starts": self._names,
            "share": chosen.share,
            "beta_relative": chosen.beta_relative,
            "num_samples": chosen.num_samples,
            "guided_steps": chosen.guided_steps,
            "plain_steps": chosen.plain_steps,
            "kick": chosen.kick,
            "patience": chosen.patience,
            "proposal": str(chosen.proposal),
        }

    def begin(self) -> _Place:
        """Before the starts."""
        return _Place()

    def propose(self, state: _Place) -> Trial | None:
        """The next start, the first strategy of a round, or the next move."""
        if state.num_starts < self._num_starts:
            return Trial(self._start(state.num_starts))
        if state.move is None:
            return Trial(self._first_of_round(state))
        return Trial(state.move.strategy, self._longest_s(state, state.move))

    def advance(self, state: _Place, trial: Trial, evaluation: Evaluation | None) -> _Place:
        """After the trial, before the next move that changes something."""
        tried = None if evaluation is None else Scored(trial.strategy, evaluation)
        if state.num_starts < self._num_starts:
            assert tried is not None, "starts are evaluated without a limit"
            return self._settled(_started(state, tried, self._settings.beta_relative))
        if state.move is None:
            assert tried is not None, "and so are the first strategies of rounds"
            found = rank(tried.evaluation)
            state = replace(
                state,
                begun=state.begun + 1,
                current=tried,
                best=_better(state.best, tried),
                gained=state.step,
                round_rank=found,
            )
            return self._settled(state)
        if tried is not None:
            accepted = self._accepts(state, tried.evaluation)
            state = replace(
                state,
                current=tried if accepted else state.current,
                best=_better(state.best, tried),
                accepted=state.accepted + accepted,
            )
            found = rank(tried.evaluation)
            if found < state.round_rank:
                state = replace(state, gained=state.step + 1, round_rank=found)
        return self._settled(replace(state, step=state.step + 1, move=None))

    def view(self, state: _Place) -> View:
        """The round and the step."""
        if state.current is None:
            return View("starts", 0.0, 0)
        stage = f"round {state.begun}, step {state.step % self._round_steps}"
        return View(stage, state.current.evaluation.iteration_time_s, state.accepted)

    def pack(self, state: _Place) -> dict[str, Any]:
        """All but the move, which is drawn again."""
        return {
            "num_starts": state.num_starts,
            "step": state.step,
            "begun": state.begun,
            "current": None if state.current is None else packed(state.current),
            "best": None if state.best is None else packed(state.best),
            "scale_s": state.scale_s,
            "accepted": state.accepted,
            "gained": state.gained,
            "round_rank": None if state.current is None else state.round_rank,
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> _Place:
        """The place that was packed."""
        ranked = content["round_rank"]
        place = _Place(
            num_starts=int(content["num_starts"]),
            step=int(content["step"]),
            begun=int(content["begun"]),
            current=None if content["current"] is None else replay(content["current"]),
            best=None if content["best"] is None else replay(content["best"]),
            scale_s=float(content["scale_s"]),
            accepted=int(content["accepted"]),
            gained=int(content["gained"]),
            round_rank=_UNRANKED if ranked is None else (bool(ranked[0]), float(ranked[1])),
        )
        return self._settled(place)

    def _start(self, number: int) -> Strategy:
        if self._given:
            return self._starts[number]
        if number == 0:
            return self._task.completed(plan_optcnn(self._task.problem).strategy)
        return self._sampler.strategy(number - 1)

    def _first_of_round(self, state: _Place) -> Strategy:
        """Where the next round begins; see the module."""
        assert state.best is not None
        best = state.best.strategy
        cycle, place = divmod(state.begun - 1, len(_BEGINNINGS))
        kind = _BEGINNINGS[place]
        if kind == "start":
            return self._starts[cycle % len(self._starts)]
        if kind in ("sample", "refine"):
            rng = np.random.default_rng((self._task.seed, _SAMPLE_STREAM, state.begun))
            contexts = self._policy.contexts(1)
            if kind == "refine":
                contexts.assign(self._policy.choices.nearest(best))
            chosen = sweep(self._policy, contexts, rng, temperature=_RESAMPLING, num_greedy=0).chosen[0]
            return replace(best, configs=self._policy.choices.strategy(chosen).configs)
        rng = np.random.default_rng((self._task.seed, _KICK_STREAM, state.begun))
        count = len(best.configs)
        size = 1 + int(rng.random() * self._settings.kick * count)
        first = int(rng.integers(count - size + 1))
        end = first + size
        drawn = self._proposals.strategy(rng).configs
        return replace(best, configs=best.configs[:first] + drawn[first:end] + best.configs[end:])

    def _settled(self, state: _Place) -> _Place:
        """`state` at the next step whose move changes something, or before a round."""
        if state.num_starts < self._num_starts:
            return state
        assert state.current is not None
        step, end = state.step, state.begun * self._round_steps
        patient = state.gained + self._settings.patience * len(state.current.strategy.configs)
        while step < end:
            if step >= patient:
                return replace(state, step=end)
            guided = step % self._round_steps < self._settings.guided_steps
            move = self._proposer.move(state.current.strategy, step, self._settings.share if guided else 1.0)
            if move is not None:
                return replace(state, step=step, move=move)
            step += 1
        return replace(state, step=step)

    def _longest_s(self, state: _Place, move: Move) -> float:
        """The longest time with which `move` is accepted, and at least that of the current strategy."""
        assert state.current is not None
        energy = max(move.exponential + move.log_ratio, 0.0)
        return state.current.limit_s + energy * state.scale_s

    def _accepts(self, state: _Place, proposed: Evaluation) -> bool:
        assert state.current is not None
        assert state.move is not None
        current = state.current.evaluation
        energy = state.move.exponential + state.move.log_ratio
        scale_bytes = current.peak_memory_bytes / self._settings.beta_relative
        return accepts(current, proposed, longer_s=energy * state.scale_s, larger_bytes=energy * scale_bytes)


def _started(state: _Place, tried: Scored, beta_relative: float) -> _Place:
    """`state` after a start: the best one becomes the current strategy."""
    best = _better(state.best, tried)
    scale_s = best.evaluation.iteration_time_s / beta_relative
    found = rank(best.evaluation)
    return replace(
        state, num_starts=state.num_starts + 1, current=best, best=best, scale_s=scale_s, round_rank=found
    )


def _better(one: Scored | None, other: Scored) -> Scored:
    """The better one, the first of equals."""
    return other if one is None or rank(other.evaluation) < rank(one.evaluation) else one
