"""`soaprl models`: the zoo, or one model of it."""

from typing import Annotated, Any

import typer

from soaprl.cli.arguments import Json
from soaprl.cli.output import print_json, print_table
from soaprl.errors import unknown_name
from soaprl.graph.zoo import ZooModel, zoo_models


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Show this model with its options.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that can be named in place of a file, or show one with its options."""
    zoo = zoo_models()
    if name is not None and name not in zoo:
        raise unknown_name("model", name, zoo)
    if as_json:
        print_json({"models": [_as_json(model) for key, model in zoo.items() if name in (None, key)]})
    elif name is None:
        columns = ("name", "parameters", "batch per device", "description")
        print_table("Models", columns, [_row(model) for model in zoo.values()])
    else:
        model = zoo[name]
        facts = (
            ("description", model.description),
            ("parameters", f"{model.num_parameters:,} ({model.source})"),
            ("batch per device", str(model.batch_per_device)),
            ("optimizer", model.optimizer),
            *((f"--option {option}", str(value)) for option, value in model.options.items()),
        )
        print_table(model.name, ("", ""), facts)


def _row(model: ZooModel) -> tuple[str, ...]:
    millions = f"{model.num_parameters / 1e6:,.1f} M"
    return model.name, millions, str(model.batch_per_device), model.description


def _as_json(model: ZooModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "description": model.description,
        "family": model.family,
        "batch_per_device": model.batch_per_device,
        "num_parameters": model.num_parameters,
        "num_parameters_source": model.source,
        "optimizer": model.optimizer,
        "options": model.options,
    }
