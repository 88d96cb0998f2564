"""Lessons: which candidate is how good, found by simulating all of them.

The teacher searches a problem by iterated descent over the policy's own candidates. A *coordinate* is one
operator or a whole group of tied ones; all its candidates are simulated, the best is taken. From a local
optimum it goes on from a disturbed copy of the best strategy so far, the *winner*. What it simulates is what
it teaches, in rows (context, excess of each candidate):

    excess_k = log(time with candidate k / shortest time of a candidate)

- *Refining* rows: everything but the coordinate is decided, as it is where the descent stands.
- *Sequential* rows: the operators before o in the order of decoding are decided, as in the winner or as in a
  disturbed copy of it; o and all after it are not. Simulated is candidate k with the rest of the winner, so
  that a choice is judged by what can become of it, not by how it fits data parallelism. Undecided operators
  that are tied to o follow it.

Coordinate descent looks at all candidates of an operator to take one; a policy that has learned from these
rows takes it without looking (as imitation of a greedy oracle: Ross, Gordon, Bagnell: DAgger, 2011).
"""

from collections.abc import Sequence
from math import inf, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from soaprl_envs.choices import Choices
from soaprl_envs.context import Contexts
from soaprl_envs.features import ProblemFeatures

from soaprl.search.proposals import tied_groups
from soaprl.simulator.delta import DeltaSimulator
from soaprl.strategy.strategy import OpConfig

IntArray = NDArray[np.int64]

# Candidates that take longer than this multiple of the best so far are not simulated to their end.
_HOPELESS = 1.6
REFINING, SEQUENTIAL = 0, 1


class Row(NamedTuple):
    """One lesson.

    Attributes:
        operator: Whose candidates.
        kind: `REFINING` or `SEQUENTIAL`.
        context: f16 [K, features].
        excess: f32 [K]; infinite where masked, hopeless, or too big for memory.
    """

    operator: int
    kind: int
    context: NDArray[np.float16]
    excess: NDArray[np.float32]


class Teacher:
    """Searches one problem and keeps what it has learned.

    Attributes:
        winner: i64 [N], the best choices so far.
        winner_s: Their iteration time; infinite while nothing fits in memory.
        start_s: That of data parallelism.
        num_evaluations: Strategies simulated.
    """

    def __init__(self, choices: Choices, features: ProblemFeatures, seed: int) -> None:
        self._choices = choices
        self._features = features
        self._rng = np.random.default_rng(seed)
        self._groups = tied_groups(choices.problem.graph)
        shared = {group for group in self._groups if len(group) > 1}
        alone = [(operator,) for operator in range(choices.num_operators)]
        self._coordinates: list[tuple[int, ...]] = [*alone, *sorted(shared)]
        self.winner: IntArray = choices.start.copy()
        self._simulator = DeltaSimulator(choices.problem, choices.strategy(self.winner))
        self._state: IntArray = self.winner.copy()
        self.winner_s = self.start_s = self._time()
        self.num_evaluations = 1
        self.rows: list[Row] = []
        self._contexts = self._standing(self._state)

    def begin_at(self, starts: Sequence[IntArray]) -> None:
        """Take the best of `starts` and of the winner so far as the winner, and stand there."""
        for chosen in starts:
            self._stand(chosen)
            self._consider()
        self._stand(self.winner)

    def descend(self, *, max_visits: int) -> int:
        """Look at coordinates in random order, at most `max_visits`; returns how many changed."""
        order = self._rng.permutation(len(self._coordinates))[:max_visits]
        return sum(self._improve(self._coordinates[index]) for index in order)

    def visit(self, chosen: IntArray, *, max_visits: int) -> None:
        """Stand at `chosen` and descend from there."""
        self._stand(chosen)
        self.descend(max_visits=max_visits)

    def disturb(self, share: float) -> None:
        """Stand at the winner with about `share` of the operators at random candidates."""
        chosen = self.winner.copy()
        for operator in np.flatnonzero(self._rng.random(len(chosen)) < share).tolist():
            chosen[operator] = self._rng.integers(len(self._choices.configs[operator]))
        self._stand(chosen)

    def recite(self, *, share: float, disturbance: float) -> None:
        """Sequential rows for about `share` of the operators.

        Args:
            share: Of the operators that become rows.
            disturbance: Share of the operators that are decided otherwise than in the winner.
        """
        standing = self._state.copy()
        self._stand(self.winner)
        contexts = Contexts(self._choices)
        decided = np.zeros(len(self.winner), np.bool_)
        for operator in self._features.order.tolist():
            candidate = int(self.winner[operator])
            disturbed = self._rng.random() < disturbance
            if disturbed or self._rng.random() < share:
                follows = [m for m in self._groups[operator] if not decided[m]]
                times = self._times(operator, follows)
                self._keep(operator, SEQUENTIAL, contexts, times)
                if disturbed:
                    candidate = self._plausible(times)
                    self._move([operator], self._choices.configs[operator][candidate])
            contexts.choose(operator, candidate)
            decided[operator] = True
        self._stand(standing)

    def _improve(self, coordinate: tuple[int, ...]) -> bool:
        """Take the best candidate of a coordinate; whether it is another one."""
        operator = int(coordinate[self._rng.integers(len(coordinate))])
        current_s = self._time()
        times = self._times(operator, list(coordinate))
        contexts = self._contexts if len(coordinate) == 1 else self._standing(self._state, without=coordinate)
        self._keep(operator, REFINING, contexts, times)
        best = int(times.argmin())
        if not times[best] < current_s:
            return False
        self._move(list(coordinate), self._choices.configs[operator][best])
        self._consider()
        return True

    def _times(self, operator: int, coordinate: list[int]) -> NDArray[np.float64]:
        """Iteration time with each candidate of `operator` for the whole coordinate, [K]."""
        times = np.full(self._choices.num_candidates, inf)
        best = inf
        for number, config in enumerate(self._choices.configs[operator]):
            changes = self._changes(coordinate, config)
            if not changes:
                times[number] = self._time()
            else:
                evaluation = self._simulator.propose_within(changes, best * _HOPELESS)
                self.num_evaluations += 1
                if evaluation is None:
                    continue
                times[number] = evaluation.iteration_time_s if evaluation.feasible else inf
                self._simulator.rollback()
            best = min(best, times[number])
        return times

    def _changes(self, coordinate: list[int], config: OpConfig) -> dict[int, OpConfig]:
        """What differs from the current strategy; operators without this candidate stay as they are."""
        known = ((member, self._choices.number(member, config)) for member in coordinate)
        return {m: config for m, number in known if number is not None and number != self._state[m]}

    def _move(self, coordinate: list[int], config: OpConfig) -> None:
        changes = self._changes(coordinate, config)
        if not changes:
            return
        self._simulator.propose_all(changes)
        self._simulator.commit()
        self.num_evaluations += 1
        for member in changes:
            number = self._choices.number(member, config)
            assert number is not None
            self._state[member] = number
            self._contexts.choose(member, int(self._state[member]))

    def _stand(self, chosen: IntArray) -> None:
        """Make `chosen` the current strategy."""
        differing = np.flatnonzero(chosen != self._state).tolist()
        if not differing:
            return
        self._simulator.propose_all({o: self._choices.configs[o][chosen[o]] for o in differing})
        self._simulator.commit()
        self.num_evaluations += 1
        self._contexts.assign(chosen)
        self._state = chosen.copy()

    def _standing(self, chosen: IntArray, without: Sequence[int] = ()) -> Contexts:
        """A context in which all operators are decided but those `without`."""
        contexts, left = Contexts(self._choices), list(without)
        held, decided = chosen.copy(), np.ones(len(chosen), np.bool_)
        held[left], decided[left] = self._choices.start[left], False
        contexts.assign(held, decided=decided)
        return contexts

    def _time(self) -> float:
        found = self._simulator.evaluation
        return found.iteration_time_s if found.feasible else inf

    def _consider(self) -> None:
        """Make the current strategy the winner if it is faster."""
        if self._time() < self.winner_s:
            self.winner, self.winner_s = self._state.copy(), self._time()

    def _keep(self, operator: int, kind: int, contexts: Contexts, times: NDArray[np.float64]) -> None:
        if not np.isfinite(times).any():
            return
        excess = np.log(times) - log(times.min())
        context = contexts.row(operator, current=False)[0].astype(np.float16)
        self.rows.append(Row(operator, kind, context, excess.astype(np.float32)))

    def _plausible(self, times: NDArray[np.float64]) -> int:
        """A random candidate, good ones more probable: by rank, geometrically."""
        ranked = np.argsort(times, kind="stable")[: int(np.isfinite(times).sum())]
        if not len(ranked):
            return 0
        return int(ranked[min(self._rng.geometric(0.4) - 1, len(ranked) - 1)])
