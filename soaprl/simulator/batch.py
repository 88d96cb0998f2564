"""Scores many strategies of one problem on all cores.

Threads take the strategies in runs of neighbours; each has a `Simulator` of its own. What a simulator says
about a strategy does not depend on what it has simulated before, so neither the number of threads nor who
takes which strategy changes a result. Compiled code runs without the interpreter lock. What holds it is the
part of `Simulator.load` in Python that looks up the patterns of changed operators: it bounds the speed-up,
the less the more alike consecutive strategies are. Bringing strategies into another order first costs more
than it saves.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from soaprl.errors import SimulationError, StrategyError
from soaprl.simulator.engine import Evaluation
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy

_RUNS_PER_THREAD = 4


class BatchSimulator:
    """Scores batches of strategies of one problem; for one caller at a time.

    Args:
        problem: What the strategies are for.
        num_threads: Threads, each with its own workspace; None: one for each core that this process may use.

    Raises:
        SimulationError: `num_threads` is below 1.
    """

    def __init__(self, problem: Problem, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            raise SimulationError(f"expected 1 or more threads, found {num_threads}.")
        self.problem = problem
        self.simulators = tuple(Simulator(problem) for _ in range(num_threads or available_cores()))

    def evaluate(self, strategies: Sequence[Strategy]) -> list[Evaluation]:
        """What `Simulator.evaluate` says about each strategy, in the order of `strategies`.

        Raises:
            StrategyError: A strategy does not fit the graph or the cluster; the message names the first such.
        """
        work = _Work(strategies, len(self.simulators))
        if len(self.simulators) == 1:
            work.do(self.simulators[0])
            return work.results()
        with ThreadPoolExecutor(len(self.simulators), thread_name_prefix="simulator") as pool:
            try:
                for future in [pool.submit(work.do, simulator) for simulator in self.simulators]:
                    future.result()
            finally:
                work.stop.set()
        return work.results()


class _Work:
    """A batch: runs of strategies that nobody has taken, and what came of the others."""

    def __init__(self, strategies: Sequence[Strategy], num_threads: int) -> None:
        self._strategies = strategies
        self._evaluations: list[Evaluation | None] = [None] * len(strategies)
        self._errors: list[tuple[int, StrategyError]] = []
        self._runs = _runs(strategies, num_threads)
        self._lock = Lock()
        self.stop = Event()

    def do(self, simulator: Simulator) -> None:
        """Scores runs with `simulator` until none is left."""
        while (run := self._next()) is not None:
            for index in run:
                if self.stop.is_set():
                    return
                try:
                    self._evaluations[index] = simulator.evaluate(self._strategies[index])
                except StrategyError as error:
                    self._errors.append((index, error))

    def results(self) -> list[Evaluation]:
        """All evaluations, in the order of the strategies."""
        if self._errors:
            index, error = min(self._errors, key=lambda found: found[0])
            raise StrategyError(f"strategy {index} of {len(self._strategies)}: {error}") from error
        return [evaluation for evaluation in self._evaluations if evaluation is not None]

    def _next(self) -> Sequence[int] | None:
        with self._lock:
            return next(self._runs, None)


def _runs(strategies: Sequence[Strategy], num_threads: int) -> Iterator[Sequence[int]]:
    """The indices of the strategies, in order, in a few runs for each thread."""
    indices = range(len(strategies))
    length = max(1, -(-len(indices) // (_RUNS_PER_THREAD * num_threads)))
    return (indices[begin : begin + length] for begin in range(0, len(indices), length))


def available_cores() -> int:
    """The number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
