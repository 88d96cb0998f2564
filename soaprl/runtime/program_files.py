"""Program files: JSON, plain or gzipped, validated when loaded and again when bound to a graph."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import ProgramError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.program import Program
from soaprl.strategy.files import describe_validation_error

FORMAT = "soaprl-program"
VERSION = 1


def save_program(program: Program, path: str | Path) -> None:
    """Writes a program wholly or not at all; gzipped if the name ends in ``.gz``.

    Raises:
        OutputError: The file cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, **TypeAdapter(Program).dump_python(program, mode="json")}
    text = json.dumps(content, separators=(",", ":")).encode()
    write_bytes_atomic(path, gzip.compress(text, mtime=0) if Path(path).suffix == ".gz" else text)


def load_program(path: str | Path) -> Program:
    """Reads a program.

    Raises:
        ProgramError: The file cannot be read, is not JSON, or is not a program of this version.
    """
    content = _parsed(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ProgramError(f'{path}: expected a program file, JSON with "format": "{FORMAT}".')
    if content.get("version") != VERSION:
        raise ProgramError(
            f"{path}: expected program file version {VERSION}, found {content.get('version')!r}. The file was"
            " written by another version of soaprl; compile the strategy again."
        )
    body = {key: value for key, value in content.items() if key not in ("format", "version")}
    try:
        # As JSON, because only there are lists good enough for tuples without being lenient elsewhere.
        return TypeAdapter(Program).validate_json(json.dumps(body), strict=True, extra="forbid")
    except ValidationError as error:
        raise ProgramError(f"{path}: {describe_validation_error(error)}") from error


def check_fits(program: Program, graph: OperatorGraph, *, fingerprint: str | None = None) -> None:
    """Raises `ProgramError` unless `program` was compiled for `graph`.

    Args:
        program: The program.
        graph: The graph.
        fingerprint: Of `graph`, where the caller already has it.
    """
    found = fingerprint or graph_fingerprint(graph)
    if found != program.graph_fingerprint:
        raise ProgramError(
            f"the program was compiled for another version of {program.model!r}: expected graph fingerprint"
            f" {program.graph_fingerprint[:12]}, found {found[:12]} of {graph.name!r}. Use the batch, model"
            " options and soaprl version that it was compiled with, or compile the strategy again."
        )


def _parsed(path: str | Path) -> Any:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read program file {str(path)!r}: {error.strerror or error}.") from error
    try:
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, zlib.error, ValueError, EOFError, RecursionError) as error:
        raise ProgramError(f"{path}: expected a program file, found something else: {error}.") from error
