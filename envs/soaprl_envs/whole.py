"""The environment ``soaprl/Strategy-v0``."""

from math import log
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from soaprl.simulator import Evaluation, SimulationResult, Simulator, simulate
from soaprl.strategy.strategy import Strategy
from soaprl_envs.arena import Arena
from soaprl_envs.base import CODE, Observation, Problems, SoapEnv, box, padded
from soaprl_envs.features import NUM_CANDIDATE, NUM_DEVICE, NUM_EDGE, NUM_OPERATOR
from soaprl_envs.spaces import SpaceLimits


class StrategyEnv(SoapEnv[NDArray[np.int64]]):
    """One step proposes a candidate for every operator; one step is one simulation.

    Registered as ``soaprl/Strategy-v0``. N, E, K and G are the most operators, edges, candidates and vertices
    (`limits`).

    Observation (all float32 and flat; 0 beyond what the problem has; in -5 .. 5):
        - ``operators`` [N x 25]: `soaprl_envs.features.OPERATOR_COLUMNS`.
        - ``candidates`` [N x K x 25]: `soaprl_envs.features.CANDIDATE_COLUMNS`.
        - ``mask`` [N x K]: 1 where an operator has a candidate.
        - ``edges`` [2 x E]: producing, then consuming operators, x 2^-16.
        - ``edge_features`` [E x 5]: `soaprl_envs.features.EDGE_COLUMNS`.
        - ``edge_mask`` [E]: 1 where there is an edge.
        - ``devices`` [G x 7]: `soaprl_envs.devices.DEVICE_COLUMNS`.
        - ``device_mask`` [G]: 1 where there is a vertex.
        - ``problem`` [1]: number of the problem x 2^-16.

        With ``features=False`` only ``mask`` and ``problem``, for policies that keep the features of problems
        outside of rollout buffers.

    Action:
        MultiDiscrete([K] x N): for each operator the number of its candidate. A number that is no candidate
        means the start, data parallelism; entries beyond the problem's operators are not looked at.

    Reward:
        log(effective time of the baseline / of the strategy): log(t_dp / t) where both fit in memory. For
        strategies that do not fit, and for the baseline where data parallelism does not, see
        `soaprl_envs.arena`.

    Episode:
        Ends (terminated) after one step. `reset` draws a problem uniformly, or takes
        ``options={"problem": number}``.

    Information:
        ``problem``, ``problem_name``, ``iteration_time_s``, ``effective_time_s``, ``baseline_time_s``,
        ``speedup``, ``feasible``, ``peak_memory_bytes``; after `reset` those of the start.

    Args:
        problems: See `SoapEnv`.
        limits: See `SoapEnv`.
        features: Whether features are observed.
        render_mode: See `SoapEnv`.
    """

    def __init__(
        self,
        problems: Problems = "small",
        *,
        limits: SpaceLimits | None = None,
        features: bool = True,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problems, limits=limits, render_mode=render_mode)
        most = self.limits
        self._features = features
        observed: dict[str, spaces.Space[Any]] = {
            "mask": box(most.operators, most.candidates, low=0.0, high=1.0),
            "problem": box(1, low=0.0, high=1.0),
        }
        if features:
            observed |= {
                "operators": box(most.operators, NUM_OPERATOR),
                "candidates": box(most.operators, most.candidates, NUM_CANDIDATE),
                "edges": box(2, most.edges, low=0.0, high=1.0),
                "edge_features": box(most.edges, NUM_EDGE),
                "edge_mask": box(most.edges, low=0.0, high=1.0),
                "devices": box(most.vertices, NUM_DEVICE),
                "device_mask": box(most.vertices, low=0.0, high=1.0),
            }
        self.observation_space = spaces.Dict(observed)
        self.action_space = spaces.MultiDiscrete([most.candidates] * most.operators)
        self._simulators: dict[int, Simulator] = {}
        self._strategy: Strategy | None = None
        self._evaluation: Evaluation | None = None

    @property
    def strategy(self) -> Strategy:
        """The strategy as it is now."""
        self._at_hand()
        assert self._strategy is not None, "an episode has a strategy"
        return self._strategy

    @property
    def evaluation(self) -> Evaluation:
        """What the simulator says about it."""
        self._at_hand()
        assert self._evaluation is not None, "an episode has an evaluation"
        return self._evaluation

    def result(self) -> SimulationResult:
        """All that the simulator says about it."""
        arena = self._at_hand()
        return simulate(arena.problem, self.strategy, simulator=self._simulator(arena))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Shows a problem."""
        arena = self._start(seed, options)
        self._strategy, self._evaluation = arena.choices.strategy(arena.choices.start), arena.start
        if self.render_mode == "human":
            self.render()
        return self._observed(arena), self._info(arena, arena.start)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Simulates a strategy."""
        arena = self._at_hand()
        found = arena.choices
        chosen = np.asarray(action, np.int64)[: found.num_operators]
        inside = np.clip(chosen, 0, found.num_candidates - 1)
        legal = (inside == chosen) & found.mask[np.arange(found.num_operators), inside]
        self._strategy = found.strategy(np.where(legal, inside, found.start))
        self._evaluation = self._simulator(arena).evaluate(self._strategy)
        if self.render_mode == "human":
            self.render()
        reward = log(arena.baseline_s / arena.effective_s(self._evaluation))
        return self._observed(arena), reward, True, False, self._info(arena, self._evaluation)

    def _simulator(self, arena: Arena) -> Simulator:
        known = self._simulators.get(arena.number)
        if known is None or known.problem is not arena.problem:
            known = Simulator(arena.problem)
            while len(self._simulators) >= _SIMULATORS_KEPT:
                self._simulators.pop(next(iter(self._simulators)))
            self._simulators[arena.number] = known
        return known

    def _observed(self, arena: Arena) -> Observation:
        most, features = self.limits, arena.features
        observed = {
            "mask": padded(features.mask, most.operators, most.candidates),
            "problem": np.array([arena.number * CODE], np.float32),
        }
        if self._features:
            num_edges, num_vertices = features.edges.shape[1], len(features.devices)
            observed |= {
                "operators": padded(features.operators, most.operators, NUM_OPERATOR),
                "candidates": padded(features.candidates, most.operators, most.candidates, NUM_CANDIDATE),
                "edges": padded(features.edges * CODE, 2, most.edges),
                "edge_features": padded(features.edge_features, most.edges, NUM_EDGE),
                "edge_mask": padded(np.ones(num_edges), most.edges),
                "devices": padded(features.devices, most.vertices, NUM_DEVICE),
                "device_mask": padded(np.ones(num_vertices), most.vertices),
            }
        return observed


_SIMULATORS_KEPT = 8
