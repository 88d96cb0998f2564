"""From the name of a model to its operator graph: the zoo, or a factory in a user's file."""

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from soaprl.errors import CaptureError
from soaprl.graph import zoo
from soaprl.graph.capture.export import Factory, capture, describe_failure
from soaprl.graph.coarsen import coarsen
from soaprl.graph.lower import lower
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.program import Program
from soaprl.graph.rules import default_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFile:
    """A factory in a user's Python file.

    Attributes:
        path: The file.
        factory: Name of the function in it.
        sha256: Hash of the file's content.
    """

    path: Path
    factory: str
    sha256: str


def parse_user_file(reference: str) -> UserFile:
    """Parses ``path/file.py:factory``.

    Raises:
        CaptureError: The reference is malformed or the file does not exist.
    """
    path_text, colon, name = reference.rpartition(":")
    if not colon or not path_text.endswith(".py") or not name.isidentifier():
        raise CaptureError(
            f"expected a zoo model, path/file.py:factory or a saved graph, found {reference!r}; "
            "'soaprl models' lists the zoo"
        )
    path = Path(path_text)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaptureError(f"cannot read the model file {path}: {error.strerror or error}") from error
    return UserFile(path=path, factory=name, sha256=hashlib.sha256(content).hexdigest())


def capture_model(
    reference: str,
    batch_size: int,
    *,
    options: Mapping[str, Any] | None = None,
    coarsened: bool = True,
) -> OperatorGraph:
    """The operator graph of a model.

    Args:
        reference: A zoo name, or ``path/file.py:factory``.
        batch_size: Global batch size.
        options: Options of a zoo model.
        coarsened: Whether views and elementwise operators are folded into their neighbours.

    Raises:
        CaptureError: The model cannot be made or exported.
        UnknownNameError: No such zoo model or option.
    """
    if reference.endswith(".py") or ":" in reference:
        factory = load_factory(parse_user_file(reference))
    else:

        def factory(batch: int) -> tuple[Any, ...]:
            return zoo.build(reference, batch, **(options or {}))

    return graph_from_factory(factory, batch_size, name=reference, coarsened=coarsened)


def graph_from_factory(
    factory: Factory, batch_size: int, *, name: str, coarsened: bool = True
) -> OperatorGraph:
    """The operator graph of what `factory` makes; see `capture_model`."""
    return graph_from_program(capture(factory, batch_size, name=name), coarsened=coarsened)


def graph_from_program(program: Program, *, coarsened: bool = True) -> OperatorGraph:
    """Lowers a captured program with the default rules."""
    lowered = lower(program, default_rules(), keep_views=not coarsened)
    notes = list(program.notes)
    operators = lowered.operators
    if coarsened:
        result = coarsen(lowered)
        operators = result.operators
        notes.append(
            f"{len(program.nodes)} calls became {len(operators)} operators ({result.num_folded} folded)"
        )
    if lowered.unknown:
        names = ", ".join(f"{target} ({count})" for target, count in sorted(lowered.unknown.items()))
        notes.append(f"warning: no rule for {names}: not split, costed by bytes")
    for target, reason in lowered.failed.items():
        notes.append(f"warning: the rule for {target} failed ({reason}): not split, costed by bytes")
    return OperatorGraph(
        name=program.name,
        batch_size=program.batch_size,
        tensors=lowered.tensors,
        operators=operators,
        constants=lowered.constants,
        constant_results=lowered.constant_results,
        loss=lowered.loss,
        literals=lowered.literals,
        notes=tuple(notes),
    )


def load_factory(file: UserFile) -> Factory:
    """Imports a user's file and returns its factory.

    Raises:
        CaptureError: The file fails to import or has no such function.
    """
    module = _import(file)
    factory = getattr(module, file.factory, None)
    if not callable(factory):
        functions = sorted(
            name
            for name, value in vars(module).items()
            if isinstance(value, FunctionType) and value.__module__ == module.__name__ and name[0] != "_"
        )
        raise CaptureError(
            f"{file.path} has no function {file.factory!r}; it defines {', '.join(functions) or 'none'}"
        )
    return factory  # type: ignore[no-any-return]


def _import(file: UserFile) -> ModuleType:
    """The module that a user's file defines, imported as the member of a package of its own.

    Its folder becomes the first to import from, as when Python runs the file, and stays it: factories and
    forwards may import too. As the package is the folder, imports relative to the file work as well.
    """
    folder = file.path.resolve().parent
    key = hashlib.sha256(f"{folder} {file.sha256}".encode()).hexdigest()[:12]
    package = ModuleType(f"soaprl_user_model_{key}")
    package.__path__ = [str(folder)]
    name = f"{package.__name__}.{file.path.stem}"
    spec = importlib.util.spec_from_file_location(name, file.path)
    assert spec is not None, "a .py file has a spec"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {package.__name__: package, name: module}
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CaptureError(f"{file.path} cannot be imported: {describe_failure(error)}") from error
    return module
