"""What the environments have in common that change one strategy, step by step."""

from soaprl.simulator import Evaluation, SimulationResult
from soaprl.strategy.strategy import Strategy
from soaprl_envs.arena import Arena
from soaprl_envs.base import Action, Problems, SoapEnv
from soaprl_envs.spaces import SpaceLimits
from soaprl_envs.walks import Walk


class WalkingEnv(SoapEnv[Action]):
    """An environment whose episode is a walk; subclasses begin it in `reset`."""

    def __init__(
        self,
        problems: Problems = "small",
        *,
        limits: SpaceLimits | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problems, limits=limits, render_mode=render_mode)
        self._walk: Walk | None = None

    @property
    def strategy(self) -> Strategy:
        """The strategy as it is now."""
        return self._open().strategy

    @property
    def evaluation(self) -> Evaluation:
        """What the simulator says about it."""
        return self._open().evaluation

    def result(self) -> SimulationResult:
        """All that the simulator says about it."""
        return self._open().simulator.result()

    def _take_walk(self, arena: Arena) -> Walk:
        """A walk at the start of `arena`; others may have the one of the episode before."""
        if self._walk is not None:
            self.pool.walks.give_back(self._walk)
            self._walk = None
        self._walk = self.pool.walks.walk(arena)
        return self._walk

    def _open(self) -> Walk:
        self._at_hand()
        assert self._walk is not None, "an episode has a walk"
        return self._walk
