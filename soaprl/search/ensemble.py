"""Where chains that walk side by side stand, and how that is kept in a file.

Evaluations are numbered as if the chains took turns, one step each: step k of chain c (the start is step 0)
is evaluation ``k * num_chains + c + 1`` of the search. A budget of evaluations therefore gives each chain the
same number of them, but for one, and the numbers depend neither on threads nor on interruptions. A chain
counts its own steps; implemented in `number_of`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from soaprl.search.chain import Chain
from soaprl.search.position import chain_state, replayed, resume_path, resumed_chain
from soaprl.search.state import ChainsState, MemberState, Signature, load_chains, pack
from soaprl.search.task import Best, SearchTask, rank


class Member(NamedTuple):
    """One of the chains.

    Attributes:
        chain: The chain; the history of its best counts this chain's steps, from 0 for the start.
        initial_time_s: Iteration time of its start.
        restarts: How often it went back to the best of all chains.
    """

    chain: Chain
    initial_time_s: float
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Where all chains stand; enough to go on.

    Attributes:
        num_rounds: Rounds that are over; the chains may be at different steps of the next one.
        members: The chains; None for one whose start was not evaluated yet.
    """

    num_rounds: int
    members: tuple[Member | None, ...]

    @property
    def begun(self) -> list[Member]:
        """The chains whose start was evaluated."""
        return [member for member in self.members if member is not None]

    @property
    def num_evaluations(self) -> int:
        """Evaluations so far: one for each start, one for each step."""
        return sum(1 + member.chain.step for member in self.begun)

    @property
    def num_accepted(self) -> int:
        """Accepted proposals of all chains."""
        return sum(member.chain.accepted for member in self.begun)

    @property
    def leader(self) -> int | None:
        """The chain that knows the best strategy, of equal ones that of the smallest evaluation number."""
        numbers = [c for c, member in enumerate(self.members) if member is not None]
        return min(numbers, key=self._standing) if numbers else None

    @property
    def best(self) -> Best | None:
        """The best strategy of all chains, and the improvements in the order of evaluation numbers."""
        leader = self.leader
        if leader is None:
            return None
        member = self.members[leader]
        assert member is not None
        best = member.chain.best
        return Best(strategy=best.strategy, evaluation=best.evaluation, history=self._history())

    def number_of(self, chain: int, step: int) -> int:
        """The number, from 1, of the evaluation that is `step` of `chain`."""
        return step * len(self.members) + chain + 1

    def _standing(self, number: int) -> tuple[tuple[bool, float], int, int]:
        member = self.members[number]
        assert member is not None
        best = member.chain.best
        found = self.number_of(number, best.history[-1][0]) if best.history else 0
        return rank(best.evaluation), found, number

    def _history(self) -> tuple[tuple[int, float, float], ...]:
        """What was better than everything with a smaller number; seconds until all up to it were known."""
        points = sorted(
            (self.number_of(c, step), at_s, time_s)
            for c, member in enumerate(self.members)
            if member is not None
            for step, at_s, time_s in member.chain.best.history
        )
        history: list[tuple[int, float, float]] = []
        latest_s = 0.0
        for number, at_s, time_s in points:
            latest_s = max(latest_s, at_s)
            if not history or time_s < history[-1][2]:
                history.append((number, latest_s, time_s))
        return tuple(history)


def ensemble_state(ensemble: Ensemble, elapsed_s: float, signature: Signature) -> ChainsState:
    """What the state file holds of `ensemble`, `elapsed_s` after the search began."""
    return ChainsState(
        signature=signature,
        elapsed_s=elapsed_s,
        num_rounds=ensemble.num_rounds,
        chains=[None if member is None else _member_state(member) for member in ensemble.members],
    )


def _member_state(member: Member) -> MemberState:
    best = member.chain.best
    return MemberState(
        chain=chain_state(member.chain),
        initial_time_s=member.initial_time_s,
        restarts=member.restarts,
        best=pack(best.strategy, best.evaluation),
        history=best.history,
    )


def resumed_ensemble(task: SearchTask, signature: Signature) -> tuple[Ensemble, float]:
    """The ensemble that the task's state file holds, and its search time.

    Raises:
        SearchError: There is no such file, or it belongs to another search, model or cost.
    """
    state = load_chains(resume_path(task), signature)
    members = tuple(None if member is None else _member(task, member) for member in state.chains)
    return Ensemble(num_rounds=state.num_rounds, members=members), state.elapsed_s


def _member(task: SearchTask, state: MemberState) -> Member:
    strategy, evaluation = replayed(task, state.best)
    best = Best(strategy=strategy, evaluation=evaluation, history=state.history)
    chain = resumed_chain(task, state.chain, best)
    return Member(chain=chain, initial_time_s=state.initial_time_s, restarts=state.restarts)
