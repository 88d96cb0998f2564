"""The file that an exhaustive search goes on from: what it found, and its open nodes."""

import base64
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl.atomic import write_text_atomic
from soaprl.errors import SearchError
from soaprl.search.exhaustive.frontier import Node
from soaprl.strategy.files import describe_validation_error

FORMAT = "soaprl-exhaustive-state"

Signature: TypeAlias = dict[str, str | int | float | bool]


class ExhaustiveState(BaseModel):
    """The content of a state file.

    Attributes:
        format: Always ``soaprl-exhaustive-state``.
        version: Version of the format.
        signature: What must be equal in the search that goes on: problem and settings.
        elapsed_s: Search time so far.
        num_evaluations: Strategies simulated so far.
        num_expanded: Nodes looked at.
        num_bounded: Lower bounds computed.
        num_pruned: Nodes whose bound showed that they lead to nothing better.
        next_number: Number of the next node.
        initial_time_s: Iteration time of the first strategy.
        best: Degrees and devices of each operator of the best strategy.
        history: Its improvements: (evaluation number, seconds, iteration time).
        nodes: The open nodes, see `pack_nodes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["soaprl-exhaustive-state"] = "soaprl-exhaustive-state"
    version: Literal[1] = 1
    signature: Signature
    elapsed_s: float
    num_evaluations: int
    num_expanded: int
    num_bounded: int
    num_pruned: int
    next_number: int
    initial_time_s: float
    best: list[tuple[tuple[int, ...], tuple[int, ...]]]
    history: tuple[tuple[int, float, float], ...]
    nodes: str


def pack_nodes(nodes: Iterable[Node], num_operators: int) -> str:
    """Nodes as text: compressed rows of bound, number and configurations, -1 where none is chosen."""
    ordered = sorted(nodes)
    table = np.full((len(ordered), num_operators + 2), -1.0)
    for row, node in zip(table, ordered, strict=True):
        row[0], row[1] = node.bound_s, node.number
        row[2 : 2 + len(node.rows)] = node.rows
    return base64.b64encode(zlib.compress(table.astype("<f8").tobytes())).decode()


def unpack_nodes(text: str, num_operators: int) -> list[Node]:
    """The nodes that `pack_nodes` made a text of."""
    table = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8").reshape(-1, num_operators + 2)
    nodes = []
    for bound_s, number, *columns in table.tolist():
        rows = tuple(int(column) for column in columns if column >= 0)
        nodes.append(Node(bound_s=bound_s, minus_depth=-len(rows), number=int(number), rows=rows))
    return nodes


def save_exhaustive(path: Path, state: ExhaustiveState) -> None:
    """Write `state` to `path`, wholly or not at all; raises `OutputError` if that cannot be."""
    write_text_atomic(path, json.dumps(state.model_dump(mode="json")) + "\n")


def load_exhaustive(path: Path, signature: Signature) -> ExhaustiveState:
    """The state at `path`.

    Raises:
        SearchError: The file is missing or no state, or it belongs to a search with another signature.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SearchError(f"cannot read search state {str(path)!r}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{path}: expected a search state in JSON: {error}.") from error
    try:
        state = ExhaustiveState.model_validate(content)
    except ValidationError as error:
        raise SearchError(
            f"{path}: expected the state of an exhaustive search; {describe_validation_error(error)}"
        ) from error
    for name, expected in signature.items():
        if state.signature.get(name) != expected:
            raise SearchError(
                f"{path} is the state of another search: {name} was {state.signature.get(name)!r} there, and"
                f" is {expected!r} now. Use the same settings, or start anew without the state."
            )
    return state
