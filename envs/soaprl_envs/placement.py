"""The environment ``soaprl/Placement-v0``."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from soaprl.errors import SimulationError
from soaprl_envs.arena import Arena
from soaprl_envs.base import CODE, Observation, Problems, box, standing
from soaprl_envs.context import NUM_CONTEXT
from soaprl_envs.features import NUM_CANDIDATE, NUM_OPERATOR
from soaprl_envs.spaces import SpaceLimits
from soaprl_envs.walking import WalkingEnv
from soaprl_envs.walks import Walk


class PlacementEnv(WalkingEnv[np.int64]):
    """One operator a step, in topological order, from data parallelism.

    Registered as ``soaprl/Placement-v0``. K is the most candidates of an operator (`limits.candidates`).

    Observation (all float32 and flat):
        - ``candidates`` [K x 41]: for each candidate of the operator whose turn it is, its own features
          (`soaprl_envs.features.CANDIDATE_COLUMNS`, 25), then what the other operators' choices make of it
          (`soaprl_envs.context.CONTEXT_COLUMNS`, 16); 0 where there is no candidate. In -5 .. 5.
        - ``operator`` [25]: the operator (`soaprl_envs.features.OPERATOR_COLUMNS`). In -5 .. 5.
        - ``mask`` [K]: 1 where the operator has a candidate.
        - ``place`` [2]: number of the problem and index of the operator, each x 2^-16: exact, for policies
          that keep what they know of a problem.
        - ``progress`` [3]: share of the operators decided; log(speed-up over the baseline) within -5 .. 5;
          1 if the strategy fits in memory.

        After the last operator, that one is observed again.

    Action:
        Discrete(K): the candidate of the operator whose turn it is. A number that is no candidate keeps what
        it holds (data parallelism), so every action is legal; `action_masks` has what `MaskablePPO` asks for.

    Reward:
        log(effective time before / after): what the step gained, from delta simulation. The rewards of an
        episode sum up to log(effective time of the start / of the end), which is log(t_dp / t) where both
        fit in memory. For the effective time of strategies that do not fit (also of the start, if data
        parallelism does not) see `soaprl_envs.arena`. With ``rewards="last"`` only the last step simulates,
        and gets the whole sum: many times quicker, and harder to learn from.

    Episode:
        Ends (terminated) after as many steps as the problem has operators; never truncated. `reset` draws a
        problem uniformly, or takes ``options={"problem": number}``.

    Information:
        ``problem``, ``problem_name``, ``operator`` (whose turn it is), ``iteration_time_s``,
        ``effective_time_s``, ``baseline_time_s``, ``speedup``, ``feasible``, ``peak_memory_bytes``,
        ``num_evaluations`` (strategies simulated in this episode). With ``rewards="last"`` the times are
        those of the start until the last step.

    Args:
        problems: See `SoapEnv`.
        limits: See `SoapEnv`.
        rewards: ``each`` or ``last``.
        render_mode: See `SoapEnv`.
    """

    def __init__(
        self,
        problems: Problems = "small",
        *,
        limits: SpaceLimits | None = None,
        rewards: str = "each",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problems, limits=limits, render_mode=render_mode)
        if rewards not in ("each", "last"):
            raise SimulationError(f"expected rewards 'each' or 'last', found {rewards!r}.")
        self._each = rewards == "each"
        count = self.limits.candidates
        self.observation_space = spaces.Dict(
            {
                "candidates": box(count, NUM_CANDIDATE + NUM_CONTEXT),
                "operator": box(NUM_OPERATOR),
                "mask": box(count, low=0.0, high=1.0),
                "place": box(2, low=0.0, high=1.0),
                "progress": box(3),
            }
        )
        self.action_space = spaces.Discrete(count)
        self._operator = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode at data parallelism."""
        arena = self._start(seed, options)
        self._walk = self._take_walk(arena)
        self._operator = 0
        if self.render_mode == "human":
            self.render()
        return self._observed(arena, self._walk), self._information(arena, self._walk)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decides the operator whose turn it is."""
        arena, walk = self._at_hand(), self._open()
        num_operators = arena.choices.num_operators
        if self._operator >= num_operators:
            raise SimulationError("expected a step within an episode, found it ended. Call `reset`.")
        reward = walk.take(self._operator, int(action), simulate=self._each)
        self._operator += 1
        terminated = self._operator == num_operators
        if terminated and not self._each:
            reward = walk.settle()
        observed, information = self._observed(arena, walk), self._information(arena, walk)
        if self.render_mode == "human" and terminated:
            self.render()
        return observed, reward, terminated, False, information

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are candidates of the operator whose turn it is, shape [K]."""
        arena = self._at_hand()
        mask = np.zeros(self.limits.candidates, np.bool_)
        mine = arena.choices.mask[self._turn(arena)]
        mask[: len(mine)] = mine
        return mask

    def _turn(self, arena: Arena) -> int:
        return min(self._operator, arena.choices.num_operators - 1)

    def _observed(self, arena: Arena, walk: Walk) -> Observation:
        operator, features = self._turn(arena), arena.features
        count = arena.choices.num_candidates
        candidates = np.zeros((self.limits.candidates, NUM_CANDIDATE + NUM_CONTEXT), np.float32)
        candidates[:count, :NUM_CANDIDATE] = features.candidates[operator]
        candidates[:count, NUM_CANDIDATE:] = walk.contexts.row(operator)[0]
        mask = np.zeros(self.limits.candidates, np.float32)
        mask[:count] = features.mask[operator]
        decided = self._operator / arena.choices.num_operators
        progress = (decided, standing(arena, walk.effective_s), float(walk.evaluation.feasible))
        return {
            "candidates": candidates.ravel(),
            "operator": features.operators[operator].copy(),
            "mask": mask,
            "place": np.array((arena.number * CODE, operator * CODE), np.float32),
            "progress": np.array(progress, np.float32),
        }

    def _information(self, arena: Arena, walk: Walk) -> dict[str, Any]:
        information = self._info(arena, walk.evaluation)
        information["operator"] = self._turn(arena)
        information["num_evaluations"] = walk.num_evaluations
        return information
