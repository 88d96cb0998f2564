"""Saved operator graphs: JSON, plain or gzipped, that load without torch.

The content is the dataclasses of `soaprl.graph.operators` field by field. Spans and dimension uses, of which
a graph has thousands, are stored as short lists.
"""

import gzip
import hashlib
import json
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import GraphError
from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.operators import (
    Access,
    Argument,
    Broadcast,
    Call,
    DimUse,
    Literal,
    Operator,
    OperatorGraph,
    Ref,
    Tensor,
    TensorRole,
    Term,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = "soaprl-graph"
VERSION = 1


def graph_fingerprint(graph: OperatorGraph) -> str:
    """SHA-256 over everything of a graph that a strategy or a simulated time depends on."""
    content = graph_to_dict(graph)
    for irrelevant in ("name", "notes", "literals"):
        content.pop(irrelevant, None)
    for tensor in content["tensors"]:
        tensor.pop("sample_dims", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_graph(graph: OperatorGraph, path: Path) -> None:
    """Writes a graph atomically; gzipped if the name ends in ``.gz``."""
    text = json.dumps(graph_to_dict(graph), separators=(",", ":")).encode()
    write_bytes_atomic(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def load_graph(path: Path) -> OperatorGraph:
    """Reads a graph.

    Raises:
        GraphError: The file cannot be read, is not JSON, or is not a graph of this version.
    """
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except OSError as error:
        raise GraphError(f"cannot read the graph file {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise GraphError(f"{path} is not a saved graph: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise GraphError(f"{path} is not a saved graph: expected format {FORMAT!r}, found {found!r}")
    if content.get("version") != VERSION:
        raise GraphError(
            f"{path} has version {content.get('version')!r} of the graph format, expected {VERSION}; "
            "capture the model again"
        )
    try:
        return graph_from_dict(content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GraphError(
            f"{path} is damaged: {type(error).__name__}: {error}; capture the model again"
        ) from error


def graph_to_dict(graph: OperatorGraph) -> dict[str, Any]:
    """A graph as JSON values."""
    content = {"format": FORMAT, "version": VERSION, **_record(graph)}
    if not graph.literals:
        del content["literals"]
    for tensor in content["tensors"]:
        if not tensor["sample_dims"]:
            del tensor["sample_dims"]
    return content


def _record(item: "DataclassInstance") -> dict[str, Any]:
    return {f.name: _plain(getattr(item, f.name)) for f in fields(item)}


def _plain(item: object) -> object:
    if isinstance(item, Enum):
        return item.value
    if isinstance(item, Span):
        return _span_to_list(item)
    if isinstance(item, DimUse):
        return [item.extent, list(item.factors), None if item.span is None else _span_to_list(item.span)]
    if isinstance(item, Term):
        return [item.coefficient, list(item.factors)]
    if isinstance(item, Broadcast):
        return {"broadcast": [item.factor, item.extent]}
    if isinstance(item, Ref):
        return {"ref": [item.source, item.index, item.result, _plain(item.layout)]}
    if is_dataclass(item) and not isinstance(item, type):
        return _record(item)
    if isinstance(item, tuple):
        return [_plain(i) for i in item]
    return item


def _span_to_list(span: Span) -> list[int]:
    short = [span.factor, span.lower, span.upper]
    affine = [span.mul, span.div, span.add_first, span.add_last]
    return short if affine == [1, 1, 0, 0] else short + affine


def _span(item: list[int]) -> Span:
    factor, lower, upper, *affine = item
    mul, div, add_first, add_last = affine or (1, 1, 0, 0)
    return Span(
        factor=factor, lower=lower, upper=upper, mul=mul, div=div, add_first=add_first, add_last=add_last
    )


def graph_from_dict(content: dict[str, Any]) -> OperatorGraph:
    """The graph that `graph_to_dict` made `content` of."""
    return OperatorGraph(
        name=content["name"],
        batch_size=content["batch_size"],
        tensors=tuple(_tensor(t) for t in content["tensors"]),
        operators=tuple(_operator(o) for o in content["operators"]),
        loss=content["loss"],
        constants=tuple(_call(c) for c in content["constants"]),
        constant_results=tuple(tuple(r) for r in content["constant_results"]),
        literals=tuple(
            Literal(tensor=item["tensor"], data=item["data"]) for item in content.get("literals", ())
        ),
        notes=tuple(content["notes"]),
    )


def _tensor(item: dict[str, Any]) -> Tensor:
    refined = tuple(tuple(p) for p in item["refined"])
    return Tensor(
        **{
            **item,
            "role": TensorRole(item["role"]),
            "refined": refined,
            "aliases": tuple(item["aliases"]),
            "sample_dims": tuple(item.get("sample_dims", ())),
        }
    )


def _layout(item: list[list[Any]]) -> tuple[tuple[int | Broadcast, ...], ...]:
    return tuple(
        tuple(
            Broadcast(factor=part["broadcast"][0], extent=part["broadcast"][1])
            if isinstance(part, dict)
            else part
            for part in dim
        )
        for dim in item
    )


def _access(item: dict[str, Any]) -> Access:
    spans = tuple(_span(s) for s in item["spans"])
    return Access(**{**item, "spans": spans, "layout": _layout(item["layout"])})


def _terms(items: list[list[Any]]) -> tuple[Term, ...]:
    return tuple(Term(coefficient=coefficient, factors=tuple(factors)) for coefficient, factors in items)


def _argument(item: object) -> Argument:
    if isinstance(item, list):
        return tuple(_argument(i) for i in item)
    if isinstance(item, dict):
        source, index, result, layout = item["ref"]
        return Ref(
            source=source, index=index, result=result, layout=None if layout is None else _layout(layout)
        )
    assert item is None or isinstance(item, bool | int | float | str), "JSON has no other values"
    return item


def _uses(items: list[list[Any]]) -> tuple[DimUse, ...]:
    return tuple(
        DimUse(extent=extent, factors=tuple(factors), span=None if span is None else _span(span))
        for extent, factors, span in items
    )


def _call(item: dict[str, Any]) -> Call:
    return Call(
        name=item["name"],
        target=item["target"],
        args=tuple(_argument(a) for a in item["args"]),
        kwargs=tuple((k, _argument(a)) for k, a in item["kwargs"]),
        arg_dims=tuple(_uses(dims) for dims in item["arg_dims"]),
        result_dims=tuple(_uses(dims) for dims in item["result_dims"]),
    )


def _operator(item: dict[str, Any]) -> Operator:
    accesses = {k: tuple(_access(a) for a in item[k]) for k in ("inputs", "parameters", "buffers", "outputs")}
    terms = ("forward_flops", "backward_flops", "internal_bytes", "internal_saved_bytes")
    return Operator(
        **{
            **item,
            **accesses,
            **{k: _terms(item[k]) for k in terms},
            "factors": tuple(Factor(**{**f, "kind": FactorKind(f["kind"])}) for f in item["factors"]),
            "body": tuple(_call(c) for c in item["body"]),
            "body_outputs": tuple((call, result) for call, result in item["body_outputs"]),
        }
    )
