"""Where a Metropolis search stands between two steps, and how that is kept in a file."""

from dataclasses import dataclass
from pathlib import Path

from soaprl.errors import SearchError
from soaprl.search.chain import Chain
from soaprl.search.state import ChainState, SearchState, Signature, StrategyState, load_state, pack, unpack
from soaprl.search.task import Best, Evaluation, SearchTask
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where the search is between steps; enough to go on.

    Attributes:
        start: Index of the start.
        used_evaluations: Evaluations of the starts before.
        used_s: Search time when this start began.
        accepted: Accepted proposals of the starts before.
        initial_time_s: Iteration time of the first start; None before its evaluation.
        best: Best of the starts before.
        chain: None before this start's evaluation.
    """

    start: int = 0
    used_evaluations: int = 0
    used_s: float = 0.0
    accepted: int = 0
    initial_time_s: float | None = None
    best: Best | None = None
    chain: Chain | None = None

    @property
    def num_evaluations(self) -> int:
        """Evaluations so far: one for the start, one for each step."""
        return self.used_evaluations + (0 if self.chain is None else 1 + self.chain.step)

    @property
    def num_accepted(self) -> int:
        """Accepted proposals so far."""
        return self.accepted + (0 if self.chain is None else self.chain.accepted)

    @property
    def best_so_far(self) -> Best | None:
        """Best of all starts so far."""
        return self.best if self.chain is None else self.chain.best


def position_state(position: Position, elapsed_s: float, signature: Signature) -> SearchState:
    """What the state file holds of `position`, `elapsed_s` after the search began."""
    best = position.best_so_far
    return SearchState(
        signature=signature,
        elapsed_s=elapsed_s,
        start=position.start,
        used_evaluations=position.used_evaluations,
        used_s=position.used_s,
        accepted=position.accepted,
        initial_time_s=position.initial_time_s,
        best=None if best is None else pack(best.strategy, best.evaluation),
        history=() if best is None else best.history,
        chain=None if position.chain is None else chain_state(position.chain),
    )


def chain_state(chain: Chain) -> ChainState:
    """What a state file holds of a chain, apart from its best strategy."""
    return ChainState(
        step=chain.step,
        current=pack(chain.current, chain.evaluation),
        accepted=chain.accepted,
        start_rank=chain.start_rank,
        improved_step=chain.improved_step,
        improved_s=chain.improved_s,
        time_scale_s=chain.time_scale_s,
        memory_scale_bytes=chain.memory_scale_bytes,
    )


def resumed(task: SearchTask, signature: Signature) -> tuple[Position, float]:
    """The position that the task's state file holds, and its search time.

    Raises:
        SearchError: There is no such file, or it belongs to another search, model or cost.
    """
    state = load_state(resume_path(task), signature)
    best = chain = None
    if state.best is not None:
        strategy, evaluation = replayed(task, state.best)
        best = Best(strategy=strategy, evaluation=evaluation, history=state.history)
    if state.chain is not None:
        assert best is not None, "a chain has a best strategy"
        chain = resumed_chain(task, state.chain, best)
    position = Position(
        start=state.start,
        used_evaluations=state.used_evaluations,
        used_s=state.used_s,
        accepted=state.accepted,
        initial_time_s=state.initial_time_s,
        best=best,
        chain=chain,
    )
    return position, state.elapsed_s


def resume_path(task: SearchTask) -> Path:
    """Where the state to go on from is; raises `SearchError` if the task does not say."""
    if task.state_path is None:
        raise SearchError("resuming a search needs the path of its state file.")
    return task.state_path


def resumed_chain(task: SearchTask, state: ChainState, best: Best) -> Chain:
    """The chain in a state file, its current strategy simulated again."""
    current, evaluation = replayed(task, state.current)
    return Chain(
        step=state.step,
        current=current,
        evaluation=evaluation,
        accepted=state.accepted,
        start_rank=state.start_rank,
        improved_step=state.improved_step,
        improved_s=state.improved_s,
        time_scale_s=state.time_scale_s,
        memory_scale_bytes=state.memory_scale_bytes,
        best=best,
    )


def replayed(task: SearchTask, state: StrategyState) -> tuple[Strategy, Evaluation]:
    """The strategy in a state file, simulated again; its time must be what the file says."""
    strategy = unpack(state)
    evaluation = task.evaluator.evaluate(strategy)
    if evaluation.iteration_time_s != state.iteration_time_s:
        raise SearchError(
            f"{task.state_path}: a strategy in the state takes {evaluation.iteration_time_s} s now,"
            f" and took {state.iteration_time_s} s then. The model, the costs or soaprl changed; start anew."
        )
    return strategy, evaluation
