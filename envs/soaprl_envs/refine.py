"""The environment ``soaprl/Refine-v0``."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from soaprl.errors import SimulationError
from soaprl_envs.arena import Arena
from soaprl_envs.base import CODE, Observation, Problems, box, padded, standing
from soaprl_envs.features import NUM_CANDIDATE, NUM_OPERATOR
from soaprl_envs.spaces import SpaceLimits
from soaprl_envs.walking import WalkingEnv
from soaprl_envs.walks import Walk


class RefineEnv(WalkingEnv[NDArray[np.int64]]):
    """Improvement: each step gives one operator another candidate, until the budget ends.

    Registered as ``soaprl/Refine-v0``. N and K are the most operators and candidates (`limits`).

    Observation (all float32 and flat; 0 beyond what the problem has):
        - ``operators`` [N x 50]: each operator (`soaprl_envs.features.OPERATOR_COLUMNS`, 25), then the
          candidate that it holds (`soaprl_envs.features.CANDIDATE_COLUMNS`, 25). In -5 .. 5.
        - ``chosen`` [N]: the number of the candidate that it holds, x 2^-16.
        - ``mask`` [N x K]: 1 where an operator has a candidate.
        - ``problem`` [1]: number of the problem x 2^-16.
        - ``progress`` [4]: share of the budget that is left; log(speed-up over the baseline) now, and of the
          best strategy so far, each within -5 .. 5; 1 if the strategy fits in memory.

    Action:
        MultiDiscrete([N, K]): an operator and the number of its new candidate. An operator or a candidate
        that does not exist changes nothing, and costs a step.

    Reward:
        log(effective time before / after), from delta simulation; it may be negative. The rewards of an
        episode sum up to log(effective time of the start / of the end); see `soaprl_envs.arena` for
        strategies that do not fit in memory.

    Episode:
        Ends (terminated: the budget is observed) after `budget` steps. `reset` draws a problem uniformly, or
        takes ``options={"problem": number}``; it starts at data parallelism, or at
        ``options={"chosen": candidates}``.

    Information:
        ``problem``, ``problem_name``, ``iteration_time_s``, ``effective_time_s``, ``baseline_time_s``,
        ``speedup``, ``best_speedup``, ``feasible``, ``peak_memory_bytes``, ``num_evaluations``.

    Args:
        problems: See `SoapEnv`.
        limits: See `SoapEnv`.
        budget: Steps of an episode.
        render_mode: See `SoapEnv`.
    """

    def __init__(
        self,
        problems: Problems = "small",
        *,
        limits: SpaceLimits | None = None,
        budget: int = 64,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problems, limits=limits, render_mode=render_mode)
        if budget < 1:
            raise SimulationError(f"expected a budget of at least 1 step, found {budget}.")
        most = self.limits
        self.observation_space = spaces.Dict(
            {
                "operators": box(most.operators, NUM_OPERATOR + NUM_CANDIDATE),
                "chosen": box(most.operators, low=0.0, high=1.0),
                "mask": box(most.operators, most.candidates, low=0.0, high=1.0),
                "problem": box(1, low=0.0, high=1.0),
                "progress": box(4),
            }
        )
        self.action_space = spaces.MultiDiscrete([most.operators, most.candidates])
        self._budget = budget
        self._num_steps = 0
        self._best_s = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode at data parallelism, or at the candidates in ``options["chosen"]``."""
        arena = self._start(seed, options)
        self._walk = self._take_walk(arena)
        chosen = (options or {}).get("chosen")
        if chosen is not None:
            self._walk.restart_at(np.asarray(chosen, np.int64))
        self._num_steps, self._best_s = 0, self._walk.effective_s
        if self.render_mode == "human":
            self.render()
        return self._observed(arena, self._walk), self._information(arena, self._walk)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Gives an operator a candidate."""
        arena, walk = self._at_hand(), self._open()
        if self._num_steps >= self._budget:
            raise SimulationError("expected a step within an episode, found it ended. Call `reset`.")
        operator, candidate = (int(number) for number in action)
        reward = walk.take(operator, candidate) if operator < arena.choices.num_operators else 0.0
        self._num_steps += 1
        self._best_s = min(self._best_s, walk.effective_s)
        terminated = self._num_steps == self._budget
        if self.render_mode == "human" and terminated:
            self.render()
        return self._observed(arena, walk), reward, terminated, False, self._information(arena, walk)

    def _observed(self, arena: Arena, walk: Walk) -> Observation:
        most, features, chosen = self.limits, arena.features, walk.contexts.chosen[0]
        held = features.candidates[np.arange(len(chosen)), chosen]
        progress = (
            1.0 - self._num_steps / self._budget,
            standing(arena, walk.effective_s),
            standing(arena, self._best_s),
            float(walk.evaluation.feasible),
        )
        operators = np.concatenate([features.operators, held], axis=1)
        return {
            "operators": padded(operators, most.operators, NUM_OPERATOR + NUM_CANDIDATE),
            "chosen": padded(chosen * CODE, most.operators),
            "mask": padded(features.mask, most.operators, most.candidates),
            "problem": np.array([arena.number * CODE], np.float32),
            "progress": np.array(progress, np.float32),
        }

    def _information(self, arena: Arena, walk: Walk) -> dict[str, Any]:
        information = self._info(arena, walk.evaluation)
        information["best_speedup"] = arena.baseline_s / self._best_s
        information["num_evaluations"] = walk.num_evaluations
        return information
