"""`soaprl train`: train a policy."""

import os
from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json
from soaprl.cli.output import INTERRUPTED, print_json, progress_bars, say

DEFAULT_RECIPE = "generalist"


def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="A recipe that comes with soaprl, or a YAML file. Default: generalist."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="DIR",
            help="A policy that learns further: a checkpoint's folder, or generalist, the first member of the"
            " ensemble that comes with soaprl. Default: one that has learned nothing.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the training, instead of the recipe's.")
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            "--timesteps", min=0, help="Decisions of reinforcement learning, instead of the recipe's."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the training. Default: out/RECIPE.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the training in this folder.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            help="Processes that teach lessons; the policy is the same with any number. Default: one a core.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a policy by a recipe: lessons of a teacher, imitation, reinforcement learning.

    It can be ended at any time; the same command, or --resume, goes on. With --policy a trained policy learns
    further, by a recipe with problems of your own, say.
    """
    from soaprl_agents.ensembles import SHIPPED, member_folders, shipped_policy
    from soaprl_agents.training.recipe import Recipe, load_recipe
    from soaprl_agents.training.run import open_training
    from soaprl_agents.training.run import train as run_training

    from soaprl.errors import PolicyError

    changed = seed is not None or timesteps is not None
    if resume is not None and (recipe or policy or out or changed):
        raise PolicyError(
            f"--resume goes on as {resume} was begun:"
            " leave --recipe, --policy, --out, --seed and --timesteps out."
        )
    if policy is not None and str(policy) == SHIPPED and not policy.is_dir():
        policy = member_folders(shipped_policy())[0]
    wanted: Recipe | None = None
    if resume is None:
        wanted = load_recipe(recipe or DEFAULT_RECIPE)
        if seed is not None:
            wanted = wanted.model_copy(update={"seed": seed})
        if timesteps is not None:
            wanted = wanted.model_copy(update={"ppo": wanted.ppo.model_copy(update={"timesteps": timesteps})})
    folder = resume or out or Path("out") / (wanted.name if wanted else "")
    with progress_bars() as listen:
        training = open_training(
            folder, wanted, listen, policy=policy, workers=workers or os.cpu_count() or 1
        )
        try:
            run_training(training)
        except KeyboardInterrupt:
            say(f"soaprl: to go on: soaprl train --resume {folder}")
            raise typer.Exit(INTERRUPTED) from None
    say(f"soaprl: wrote the policy to {folder}; use it with --method policy --policy {folder}")
    if as_json:
        print_json({"policy": str(folder), "recipe": training.recipe.model_dump(mode="json")})
