"""Simulated annealing with restarts.

Source: Kirkpatrick, Gelatt, Vecchi, *Optimization by simulated annealing* (Science 220, 1983). One step is a
proposal as `soaprl.search.proposals` draws it (one operator, or operators that share parameters and are
configured alike), accepted with probability min(1, exp(-(cost(S*) - cost(S)) / T)) against the current
strategy S. The temperature falls geometrically during a run of L steps,

    T(i) = scale * hot * (cold / hot) ** (i / L)        implemented in `Annealing._temperature`

where scale is the time of the strategy that the run begins with (its peak memory while nothing fits; an
infeasible strategy is never accepted from a feasible one). Run r has ``first_run_steps * 2 ** r`` steps and
begins with the best strategy so far: the first with the best of data parallelism and the experts. So no
budget has to be known in advance, and a search with a larger budget goes on exactly where it ended.

As in `soaprl.search.chain`, the random number of a step is drawn before the simulation, which may then stop
as soon as the proposal is certain to be neither accepted nor the best. There is no correction for tied moves
or for the proposal's weights: annealing looks for a minimum and samples from nothing.
"""

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from soaprl.errors import SearchError
from soaprl.search.experts import starts_for
from soaprl.search.proposals import BLOCK_SIZE, Draws, Proposals, ProposalSettings
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, moved_together, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, accepts, rank
from soaprl.strategy.strategy import Strategy

METHOD = "annealing"
_STREAM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealingSettings:
    """How the temperature falls.

    Attributes:
        hot: Temperature at the beginning of a run, relative to the time that the run begins with.
        cold: Temperature at its end.
        first_run_steps: Steps of the first run; each run after it has twice as many.

    Of 2e-2, 2e-3 and 2e-4 for `hot`, tried on RNNTC, NMT and AlexNet on ``p100-4x4`` with the paper's
    assumptions, 15,000 evaluations and two seeds, the one in the middle was best for NMT and AlexNet, and the
    hottest for RNNTC; two seeds of one differ as much.
    """

    hot: float = 2e-3
    cold: float = 1e-5
    first_run_steps: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.cold <= self.hot < inf:
            raise SearchError(
                f"expected temperatures 0 < cold <= hot, found cold {self.cold} and hot {self.hot}."
            )
        if self.first_run_steps < 1:
            raise SearchError(f"expected first_run_steps of at least 1, found {self.first_run_steps}.")


def annealing(
    task: SearchTask, start: Strategy | None = None, settings: AnnealingSettings | None = None
) -> SearchResult:
    """Anneal from `start`, or from the best of data parallelism and the experts; see the module.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    return run_procedure(task, Annealing(task, starts_for(task, start), settings or AnnealingSettings()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where annealing stands.

    Attributes:
        num_starts: Starts evaluated.
        step: Steps in all.
        run: Number of the run.
        run_step: Steps of this run.
        current: The current strategy; None before the first evaluation.
        best: The best one.
        scale_s: Time that the run began with.
        scale_bytes: Peak memory that the run began with.
        num_accepted: Proposals accepted.
    """

    num_starts: int = 0
    step: int = 0
    run: int = 0
    run_step: int = 0
    current: Scored | None = None
    best: Scored | None = None
    scale_s: float = 0.0
    scale_bytes: float = 0.0
    num_accepted: int = 0


class Annealing:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self, task: SearchTask, starts: tuple[tuple[str, Strategy], ...], settings: AnnealingSettings
    ) -> None:
        problem = task.part
        self._starts, self._settings, self._seed = starts, settings, task.seed
        self._proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
        self._block: tuple[int, Draws] | None = None

    @property
    def settings(self) -> Signature:
        """The temperatures and the starts' names."""
        return {**asdict(self._settings), "starts": ", ".join(name for name, _ in self._starts)}

    def begin(self) -> Walk:
        """Before the starts."""
        return Walk()

    def propose(self, state: Walk) -> Trial:
        """The next start, or a strategy next to the current one."""
        if state.num_starts < len(self._starts):
            return Trial(self._starts[state.num_starts][1])
        assert state.current is not None
        assert state.best is not None
        draws, row = self._draw(state.step)
        operator = draws.operators[row]
        group = self._proposals.tied(operator) if draws.tied[row] else (operator,)
        strategy = moved_together(state.current.strategy, group, operator, draws.config(row))
        margin_s = draws.exponentials[row] * self._temperature(state) * state.scale_s
        return Trial(strategy, max(state.current.limit_s + margin_s, state.best.limit_s))

    def advance(self, state: Walk, trial: Trial, evaluation: Evaluation | None) -> Walk:
        """After the trial, at the next temperature, or in the next run."""
        tried = None if evaluation is None else Scored(trial.strategy, evaluation)
        best = state.best
        if tried is not None and (best is None or rank(tried.evaluation) < rank(best.evaluation)):
            best = tried
        assert best is not None
        if state.num_starts < len(self._starts):
            return _begun(replace(state, num_starts=state.num_starts + 1), best)
        draws, row = self._draw(state.step)
        energy = draws.exponentials[row] * self._temperature(state)
        assert state.current is not None
        accepted = tried is not None and accepts(
            state.current.evaluation,
            tried.evaluation,
            longer_s=energy * state.scale_s,
            larger_bytes=energy * state.scale_bytes,
        )
        state = replace(
            state,
            step=state.step + 1,
            run_step=state.run_step + 1,
            current=tried if accepted else state.current,
            best=best,
            num_accepted=state.num_accepted + accepted,
        )
        if state.run_step < self._length(state.run):
            return state
        return _begun(replace(state, run=state.run + 1), best)

    def view(self, state: Walk) -> View:
        """The run and its temperature, relative to the time that it began with."""
        if state.current is None:
            return View("starts", 0.0, 0)
        stage = f"run {state.run + 1}, temperature {self._temperature(state):.1e}"
        return View(stage, state.current.evaluation.iteration_time_s, state.num_accepted)

    def pack(self, state: Walk) -> dict[str, Any]:
        """Numbers as they are, strategies as the state file has them."""
        strategies = {"current": state.current, "best": state.best}
        numbers = {
            name: getattr(state, name)
            for name in ("num_starts", "step", "run", "run_step", "scale_s", "scale_bytes", "num_accepted")
        }
        return {**numbers, **{n: None if s is None else packed(s) for n, s in strategies.items()}}

    def unpack(self, content: dict[str, Any], replay: Replay) -> Walk:
        """Where it stood."""
        return Walk(
            num_starts=int(content["num_starts"]),
            step=int(content["step"]),
            run=int(content["run"]),
            run_step=int(content["run_step"]),
            current=None if content["current"] is None else replay(content["current"]),
            best=None if content["best"] is None else replay(content["best"]),
            scale_s=float(content["scale_s"]),
            scale_bytes=float(content["scale_bytes"]),
            num_accepted=int(content["num_accepted"]),
        )

    def _length(self, run: int) -> int:
        return int(self._settings.first_run_steps * 2**run)

    def _temperature(self, state: Walk) -> float:
        """Relative to the scale."""
        hot, cold = self._settings.hot, self._settings.cold
        return float(hot * (cold / hot) ** (state.run_step / self._length(state.run)))

    def _draw(self, step: int) -> tuple[Draws, int]:
        """The block and the row that hold the random numbers of a step."""
        index, row = divmod(step, BLOCK_SIZE)
        if self._block is None or self._block[0] != index:
            self._block = index, self._proposals.block(self._seed, _STREAM, index)
        return self._block[1], row


def _begun(state: Walk, best: Scored) -> Walk:
    """A run that begins with the best strategy so far."""
    return replace(
        state,
        run_step=0,
        current=best,
        best=best,
        scale_s=best.evaluation.iteration_time_s,
        scale_bytes=float(best.evaluation.peak_memory_bytes),
    )
