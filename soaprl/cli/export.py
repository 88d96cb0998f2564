"""`soaprl export`: a strategy in another format."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json, OutFile
from soaprl.cli.output import print_json, say


class Format(StrEnum):
    """What a strategy can be exported as."""

    TEXT = "text"
    DOT = "dot"


def export(
    strategy: Annotated[Path, typer.Argument(metavar="STRATEGY", help="A strategy file of soaprl search.")],
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="text: for people; dot: the graph for Graphviz.")
    ] = Format.TEXT,
    out: OutFile = None,
    as_json: Json = False,
) -> None:
    """Write a strategy as text or as a graph; without --out on standard output."""
    from soaprl.atomic import check_writable, write_text_atomic
    from soaprl.cli.records import load_bound_strategy
    from soaprl.strategy.text import export_dot, export_text

    if out is not None:
        check_writable(out)
    bound = load_bound_strategy(strategy)
    render = {Format.TEXT: export_text, Format.DOT: export_dot}[format_]
    content = render(bound.graph, bound.cluster, bound.strategy)
    if out is not None:
        write_text_atomic(out, content)
        say(f"soaprl: wrote {out}")
    if as_json:
        print_json({"format": format_.value, "out": None if out is None else str(out), "content": content})
    elif out is None:
        print(content, end="")
