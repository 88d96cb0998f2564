"""Captured graphs kept on disk: capturing a model takes a second and torch, loading its graph neither.

Files lie in the user's cache folder (``$SOAPRL_CACHE``, else ``$XDG_CACHE_HOME/soaprl``, else
``~/.cache/soaprl``). Their names contain a digest of the model, its batch and options, and of all source
files of `soaprl.graph`, so that what another version of the capture made is never found.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import soaprl.graph
from soaprl.errors import GraphError, OutputError
from soaprl.graph.files import load_graph, save_graph
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import Option


def cache_folder() -> Path:
    """Where captured graphs are kept."""
    if named := os.environ.get("SOAPRL_CACHE"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "soaprl"


def zoo_graph(
    name: str, batch_size: int, options: Mapping[str, Option], *, folder: Path | None = None
) -> OperatorGraph:
    """The graph of a zoo model, captured only if it is not kept in `folder` yet.

    Args:
        name: A name of the zoo.
        batch_size: Global batch size.
        options: Options that differ from the model's defaults.
        folder: Where graphs are kept; None: `cache_folder`. One that cannot be written to is not used.

    Raises:
        SoaprlError: The model or an option does not exist, or cannot be captured.
    """
    described = json.dumps([name, batch_size, sorted(options.items()), _source_digest()])
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = (folder or cache_folder() / "graphs") / f"{name}-{batch_size}-{digest}.json.gz"
    if path.is_file():
        try:
            return load_graph(path)
        except GraphError:
            pass  # cut short by a full disk, or not ours: captured again below
    from soaprl.graph.capture import capture_model

    graph = capture_model(name, batch_size, options=dict(options))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_graph(graph, path)
    except (OSError, OutputError):
        return graph
    return graph


@cache
def _source_digest() -> str:
    """Of all that decides what capture makes of a model."""
    folder = Path(soaprl.graph.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
