"""`soaprl ensemble`: join trained policies to one."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json
from soaprl.cli.output import print_json, say


def ensemble(
    policies: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of at least two trained policies.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the ensemble.")],
    name: Annotated[str, typer.Option("--name", help="What to call it. Default: the folder's name.")] = "",
    as_json: Json = False,
) -> None:
    """Join trained policies, of several training seeds say, to one that decides by their mean.

    It is used wherever a policy is: --policy DIR. Its members, which are copied, can still be used alone.
    """
    from soaprl_agents.ensembles import load_policy, save_ensemble

    save_ensemble(out, name or out.resolve().name, policies)
    found = load_policy(out)
    say(f"soaprl: wrote the ensemble to {out}; use it with --method policy --policy {out}")
    if as_json:
        print_json({"policy": str(out), "name": found.name, "sha256": found.digest})
