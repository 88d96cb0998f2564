"""What the environments have in common: problems, seeding, information, rendering, records."""

from abc import ABC, abstractmethod
from math import log
from typing import Any, Generic, TypeAlias, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from soaprl.errors import SimulationError
from soaprl.simulator import Evaluation, SimulationResult
from soaprl.strategy.strategy import Strategy
from soaprl_envs.arena import Arena
from soaprl_envs.pool import ArenaPool
from soaprl_envs.problems.generators import ProblemGenerator
from soaprl_envs.problems.suites import load_suite
from soaprl_envs.records import ResultRecord, make_record
from soaprl_envs.rendering import timeline_picture, timeline_text
from soaprl_envs.spaces import SpaceLimits, limits_for

Observation: TypeAlias = dict[str, NDArray[np.float32]]
Action = TypeVar("Action")
Problems: TypeAlias = "str | ProblemGenerator | ArenaPool"

# Numbers of problems, operators and candidates are observed times this: exact in single precision, and small.
CODE = 2.0**-16
LARGEST = 5.0


class SoapEnv(gymnasium.Env[dict[str, Any], Action], ABC, Generic[Action]):
    """An environment in which strategies are made for the problems of a generator.

    Args:
        problems: The name or file of a suite, a generator, or a pool that several environments share.
        limits: The largest problem, which decides the size of observations and actions; None: the suite's or
            the pool's, or all problems of a generator are built to find out.
        render_mode: One of ``human`` (prints the timeline), ``ansi`` (returns it), ``rgb_array`` (draws it).

    Raises:
        SoaprlError: The suite does not exist, or the render mode is none of these.
    """

    # Gymnasium declares it as an instance's, so that it cannot be a ClassVar.
    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["human", "ansi", "rgb_array"],
        "render_fps": 2,
    }

    def __init__(
        self,
        problems: Problems = "small",
        *,
        limits: SpaceLimits | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SimulationError(
                f"expected a render mode among {', '.join(self.metadata['render_modes'])}, found"
                f" {render_mode!r}."
            )
        self.pool = _pool(problems, limits)
        self.limits = self.pool.limits
        self.render_mode = render_mode
        self.arena: Arena | None = None
        self._seed: int | None = None

    @property
    @abstractmethod
    def strategy(self) -> Strategy:
        """The strategy as it is now."""

    @property
    @abstractmethod
    def evaluation(self) -> Evaluation:
        """What the simulator says about it."""

    @abstractmethod
    def result(self) -> SimulationResult:
        """All that the simulator says about it: tasks, links, memory."""

    def record(self, method: str) -> ResultRecord:
        """The strategy as a record that can be replayed; see `soaprl_envs.records`.

        Args:
            method: Who made it, for people.

        Raises:
            SimulationError: The problem was made in code, so that it cannot be built again.
        """
        return make_record(self._at_hand(), self.strategy, self.evaluation, method=method, seed=self._seed)

    def render(self) -> Any:
        """The timeline of one iteration under the strategy, in the way of `render_mode`."""
        if self.render_mode is None:
            return None
        arena = self._at_hand()
        if self.render_mode == "rgb_array":
            return timeline_picture(self.result(), title=self._title(arena))
        text = timeline_text(self.result(), title=self._title(arena))
        if self.render_mode == "ansi":
            return text
        print(text)
        return None

    def _start(self, seed: int | None, options: dict[str, Any] | None) -> Arena:
        """Chooses the problem of an episode: ``options["problem"]``, or any."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed = seed
        wanted = (options or {}).get("problem")
        number = int(self.np_random.integers(self.pool.num_problems)) if wanted is None else int(wanted)
        self.arena = self.pool.arena(number)
        return self.arena

    def _at_hand(self) -> Arena:
        if self.arena is None:
            raise SimulationError("expected an episode, found none. Call `reset` first.")
        return self.arena

    def _title(self, arena: Arena) -> str:
        speedup = arena.baseline_s / arena.effective_s(self.evaluation)
        fits = "" if self.evaluation.feasible else ", does not fit in memory"
        return f"{arena.name}: {speedup:.2f} times as quick as {arena.baseline.name}{fits}"

    def _info(self, arena: Arena, evaluation: Evaluation) -> dict[str, Any]:
        """Information that all environments give."""
        effective_s = arena.effective_s(evaluation)
        return {
            "problem": arena.number,
            "problem_name": arena.name,
            "iteration_time_s": evaluation.iteration_time_s,
            "effective_time_s": effective_s,
            "baseline_time_s": arena.baseline_s,
            "speedup": arena.baseline_s / effective_s,
            "feasible": evaluation.feasible,
            "peak_memory_bytes": evaluation.peak_memory_bytes,
        }


def box(*shape: int, low: float = -LARGEST, high: float = LARGEST) -> spaces.Box:
    """A flat space of this many numbers: other shapes are taken for pictures by the checkers."""
    return spaces.Box(low, high, (int(np.prod(shape)),), np.float32)


def standing(arena: Arena, effective_s: float) -> float:
    """The logarithm of the speed-up over the baseline, clipped."""
    return max(-LARGEST, min(LARGEST, log(arena.baseline_s / effective_s)))


def padded(values: NDArray[Any], *shape: int) -> NDArray[np.float32]:
    """`values` in the first corner of zeros of this shape, flattened."""
    room = np.zeros(shape, np.float32)
    room[tuple(slice(0, extent) for extent in values.shape)] = values
    return room.ravel()


def _pool(problems: Problems, limits: SpaceLimits | None) -> ArenaPool:
    if isinstance(problems, ArenaPool):
        if limits is not None and limits != problems.limits:
            raise SimulationError("expected limits in the pool or beside a generator, found them in both.")
        return problems
    if isinstance(problems, str):
        suite = load_suite(problems)
        return ArenaPool(suite.problems, limits or suite.limits)
    if limits is None:
        limits = limits_for([problems.problem(number) for number in range(len(problems.names))])
    return ArenaPool(problems, limits)
