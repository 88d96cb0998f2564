"""Walks: a strategy that changes one operator at a time, simulated after each change."""

from math import log

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.simulator import DeltaSimulator, Evaluation
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl_envs.arena import Arena
from soaprl_envs.context import Contexts


class Walk:
    """A strategy of one problem on its way from the start.

    Args:
        arena: The problem.

    Attributes:
        arena: The problem.
        contexts: The choices, of one sample; `take` keeps them current.
        num_evaluations: Strategies simulated since the last `restart`, the start not counted.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.contexts = Contexts(arena.choices)
        self.num_evaluations = 0
        self._turn, self._taken = np.zeros(1, np.int64), np.zeros(1, np.int64)
        start = arena.choices.strategy(arena.choices.start)
        self._simulator = DeltaSimulator(arena.problem, start, patterns=arena.patterns)
        self._effective_s = arena.effective_s(self._simulator.evaluation)

    def restart(self) -> None:
        """Goes back to the start."""
        self._go_to(self.arena.choices.start)
        self.contexts.reset()

    def restart_at(self, chosen: IntArray) -> None:
        """Goes to these candidates, all of them decided.

        Raises:
            StrategyError: They are not one candidate for each operator.
        """
        self._go_to(chosen)
        self.contexts.assign(chosen)

    @property
    def evaluation(self) -> Evaluation:
        """What the simulator says about the strategy."""
        return self._simulator.evaluation

    @property
    def strategy(self) -> Strategy:
        """The strategy."""
        return self._simulator.strategy

    @property
    def simulator(self) -> DeltaSimulator:
        """The simulator, for whoever wants all about the strategy."""
        return self._simulator

    @property
    def effective_s(self) -> float:
        """The strategy's effective time."""
        return self._effective_s

    @property
    def speedup(self) -> float:
        """Effective time of the baseline / that of the strategy."""
        return self.arena.baseline_s / self._effective_s

    def take(self, operator: int, candidate: int, *, simulate: bool = True) -> float:
        """Gives an operator a candidate; returns the log-improvement, log(effective time before / after).

        A number that is no candidate of the operator, and the one it holds, change nothing.

        Args:
            operator: Which.
            candidate: The number of its candidate.
            simulate: Whether to simulate; otherwise 0 is returned, and `settle` simulates all such changes.
        """
        configs = self.arena.choices.configs[operator]
        current = int(self.contexts.chosen[0, operator])
        legal = 0 <= candidate < len(configs)
        self._turn[0], self._taken[0] = operator, candidate if legal else current
        self.contexts.choose_checked(self._turn, self._taken)
        if not simulate or not legal or candidate == current:
            return 0.0
        self._simulator.propose(operator, configs[candidate])
        return self._committed()

    def settle(self) -> float:
        """Simulates what `take` has not; returns the log-improvement of all of it."""
        changes = self._differences(self.arena.choices.strategy(self.contexts.chosen[0]))
        if not changes:
            return 0.0
        self._simulator.propose_all(changes)
        return self._committed()

    def _committed(self) -> float:
        before_s = self._effective_s
        self._simulator.commit()
        self.num_evaluations += 1
        self._effective_s = self.arena.effective_s(self._simulator.evaluation)
        return log(before_s / self._effective_s)

    def _go_to(self, chosen: IntArray) -> None:
        """Simulates other candidates, from which evaluations are counted."""
        changes = self._differences(self.arena.choices.strategy(chosen))
        if changes:
            self._simulator.propose_all(changes)
            self._simulator.commit()
        self.num_evaluations = 0
        self._effective_s = self.arena.effective_s(self._simulator.evaluation)

    def _differences(self, strategy: Strategy) -> dict[int, OpConfig]:
        """The configurations of `strategy` that the simulated one does not have."""
        pairs = zip(self._simulator.strategy.configs, strategy.configs, strict=True)
        return {o: after for o, (before, after) in enumerate(pairs) if before != after}


class WalkPool:
    """Walks that nobody walks: a simulator keeps what it has computed about a problem.

    Environments that share one take walks from each other, so that there are as many as there are
    environments and a few more, whatever the number of problems.

    Args:
        keep: How many are kept; beyond that, the one given back longest ago is let go.
    """

    def __init__(self, *, keep: int = 8) -> None:
        self._keep = keep
        self._idle: list[Walk] = []

    def walk(self, arena: Arena) -> Walk:
        """A walk at the start of a problem, for one to have alone until `give_back`."""
        known = [number for number, walk in enumerate(self._idle) if walk.arena is arena]
        walk = self._idle.pop(known[-1]) if known else Walk(arena)
        walk.restart()
        return walk

    def give_back(self, walk: Walk) -> None:
        """Lets others have a walk."""
        self._idle.append(walk)
        del self._idle[: -self._keep]
