"""The file that a search goes on from: of Metropolis chains, or of a procedure (`soaprl.search.stepping`).

It holds no generator state, because every random number is a function of (seed, start, step), and no
evaluations: the current and the best strategy are simulated again on resumption, which also shows that the
model, the cluster and the costs are still the same.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl.atomic import write_text_atomic
from soaprl.errors import SearchError
from soaprl.search.task import Evaluation
from soaprl.strategy.files import describe_validation_error
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy

FORMAT = "soaprl-search-state"
VERSION = 1

Signature: TypeAlias = dict[str, str | int | float | bool | None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StrategyState(_Strict):
    """A strategy and what the simulator said; `configs` are (degrees, devices) for each operator."""

    configs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    iteration_time_s: float
    peak_memory_bytes: int
    feasible: bool
    sharding: Sharding = Sharding.NONE
    micro_batches: int = 1
    schedule: Schedule = Schedule.NONE
    stages: tuple[int, ...] = ()


class ChainState(_Strict):
    """The fields of `soaprl.search.chain.Chain`, except for the best strategy."""

    step: int
    current: StrategyState
    accepted: int
    start_rank: tuple[bool, float]
    improved_step: int
    improved_s: float
    time_scale_s: float
    memory_scale_bytes: float


class SearchState(_Strict):
    """The content of a state file.

    Attributes:
        format: Always ``soaprl-search-state``.
        version: Version of the format.
        signature: What must be equal in the search that goes on: problem, seed and settings.
        elapsed_s: Search time so far.
        start: Index of the start.
        used_evaluations: Evaluations of the starts before.
        used_s: Search time when this start began.
        accepted: Accepted proposals of the starts before.
        initial_time_s: Iteration time of the first start.
        best: Best strategy so far.
        history: Its improvements: (evaluation number, seconds, iteration time).
        chain: The chain; None before its start was evaluated.
    """

    format: Literal["soaprl-search-state"] = "soaprl-search-state"
    version: Literal[1] = 1
    signature: Signature
    elapsed_s: float
    start: int
    used_evaluations: int
    used_s: float
    accepted: int
    initial_time_s: float | None
    best: StrategyState | None
    history: tuple[tuple[int, float, float], ...]
    chain: ChainState | None


class MemberState(_Strict):
    """The fields of `soaprl.search.ensemble.Member`, the chain's best strategy beside the chain."""

    chain: ChainState
    initial_time_s: float
    restarts: int
    best: StrategyState
    history: tuple[tuple[int, float, float], ...]


class ChainsState(_Strict):
    """The content of the state file of several chains.

    Attributes:
        format: Always ``soaprl-search-state``.
        version: Version of the format.
        signature: What must be equal in the search that goes on; has ``num_chains``.
        elapsed_s: Search time so far.
        num_rounds: Rounds that are over.
        chains: The chains; None for one whose start was not evaluated.
    """

    format: Literal["soaprl-search-state"] = "soaprl-search-state"
    version: Literal[1] = 1
    signature: Signature
    elapsed_s: float
    num_rounds: int
    chains: list[MemberState | None]


class SteppedState(_Strict):
    """The content of the state file of a search that makes one evaluation at a time.

    Attributes:
        format: Always ``soaprl-search-state``.
        version: Version of the format.
        signature: What must be equal in the search that goes on; has ``method``.
        elapsed_s: Search time so far.
        num_evaluations: Evaluations so far.
        initial_time_s: Iteration time of the first strategy.
        best: Best strategy so far.
        history: Its improvements: (evaluation number, seconds, iteration time).
        procedure: Where the method stands, as the method packs it.
    """

    format: Literal["soaprl-search-state"] = "soaprl-search-state"
    version: Literal[1] = 1
    signature: Signature
    elapsed_s: float
    num_evaluations: int
    initial_time_s: float
    best: StrategyState | None
    history: tuple[tuple[int, float, float], ...]
    procedure: dict[str, Any]


def pack(strategy: Strategy, evaluation: Evaluation) -> StrategyState:
    """What the file holds of a strategy."""
    return StrategyState(
        configs=[(config.degrees, config.devices) for config in strategy.configs],
        iteration_time_s=evaluation.iteration_time_s,
        peak_memory_bytes=int(evaluation.peak_memory_bytes),
        feasible=bool(evaluation.feasible),
        sharding=strategy.sharding,
        micro_batches=strategy.micro_batches,
        schedule=strategy.schedule,
        stages=strategy.stages,
    )


def unpack(state: StrategyState) -> Strategy:
    """The strategy that the file holds."""
    configs = tuple(OpConfig(degrees, devices) for degrees, devices in state.configs)
    return Strategy(configs, state.sharding, state.micro_batches, state.schedule, state.stages)


def save_state(path: Path, state: SearchState | ChainsState | SteppedState) -> None:
    """Write `state` to `path`, wholly or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text_atomic(path, json.dumps(state.model_dump(mode="json")) + "\n")


def load_state(path: Path, signature: Signature) -> SearchState:
    """The state at `path` of a search with one chain at a time.

    Raises:
        SearchError: The file is missing or no state, or it belongs to a search with another signature.
    """
    state = _load(path, signature)
    if not isinstance(state, SearchState):
        raise SearchError(f"{path}: expected the state of one chain, found that of several. Start anew.")
    return state


def load_stepped(path: Path, signature: Signature) -> SteppedState:
    """The state at `path` of a search that makes one evaluation at a time.

    Raises:
        SearchError: The file is missing or no state, or it belongs to a search with another signature.
    """
    state = _load(path, signature)
    if not isinstance(state, SteppedState):
        raise SearchError(f"{path}: expected the state of {signature['method']}, found that of chains.")
    return state


def load_chains(path: Path, signature: Signature) -> ChainsState:
    """The state at `path` of a search with several chains side by side.

    Raises:
        SearchError: The file is missing or no state, or it belongs to a search with another signature.
    """
    state = _load(path, signature)
    if not isinstance(state, ChainsState) or len(state.chains) != signature["num_chains"]:
        raise SearchError(f"{path}: expected the state of {signature['num_chains']} chains. Start anew.")
    return state


def _load(path: Path, signature: Signature) -> SearchState | ChainsState | SteppedState:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SearchError(f"cannot read search state {str(path)!r}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{path}: expected a search state in JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SearchError(f'{path}: expected a search state, JSON with "format": "{FORMAT}".')
    if content.get("version") != VERSION:
        raise SearchError(
            f"{path}: expected search state version {VERSION}, found {content.get('version')!r}."
            " Start the search anew."
        )
    try:
        state = _kind(content).model_validate(content)
    except ValidationError as error:
        raise SearchError(f"{path}: {describe_validation_error(error)}") from error
    _check_signature(path, state.signature, signature)
    return state


def _kind(content: dict[str, Any]) -> type[SearchState] | type[ChainsState] | type[SteppedState]:
    """Whose state it is, by what only that has."""
    if "procedure" in content:
        return SteppedState
    return ChainsState if "chains" in content else SearchState


def _check_signature(path: Path, found: Signature, expected: Signature) -> None:
    # A state of one chain does not name their number: there was only one when the format was made.
    found, expected = ({"num_chains": 1, **signature} for signature in (found, expected))
    different = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if different:
        name = different[0]
        raise SearchError(
            f"{path} is the state of another search: {name} was {found.get(name)!r} there, and is"
            f" {expected.get(name)!r} now. Use the same settings, or start anew without the state."
        )
