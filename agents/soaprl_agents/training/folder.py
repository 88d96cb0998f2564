"""What a training's folder holds from the first moment: its recipe, and the policy that it begins with."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from soaprl_agents.checkpoints import WEIGHTS, Checkpoint, load_checkpoint, save_checkpoint
from soaprl_agents.training.recipe import Recipe

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.errors import PolicyError

_RECIPE, _BEGUN_WITH = "recipe.json", "begun-with"


class Begun(NamedTuple):
    """How a training began.

    Attributes:
        recipe: What to do.
        policy: Whose weights it began with, the digest of them in its ``training``; None: untrained ones.
    """

    recipe: Recipe
    policy: Checkpoint | None


def keep_beginning(folder: Path, recipe: Recipe | None, policy: Path | None = None) -> Begun:
    """How the training in `folder` began; it begins with `recipe` and `policy` if there is none.

    Args:
        folder: Of the training.
        recipe: To begin with; None: there is a training.
        policy: Folder of the checkpoint to begin with; None: untrained weights, or what is in the folder.

    Raises:
        PolicyError: `folder` has been begun otherwise, or has nothing and no recipe is given; the policy is
            damaged, or is not of the shape that the recipe wants.
        OutputError: The folder cannot be written.
    """
    if not (folder / _RECIPE).is_file():
        return _begin(folder, recipe, policy)
    found = _read_recipe(folder / _RECIPE)
    if recipe is not None and recipe != found:
        raise PolicyError(
            f"{folder}: expected the recipe {found.name!r} that the training here began with, found another."
            " Name another folder with --out, or leave the recipe out and --resume."
        )
    own = folder / _BEGUN_WITH
    if policy is not None and (not own.is_dir() or _digest(own) != _digest(policy)):
        raise PolicyError(
            f"{folder}: expected the policy that the training here began with, found {policy}."
            " Name another folder with --out, or leave the policy out and --resume."
        )
    return Begun(found, _identified(own) if own.is_dir() else None)


def _begin(folder: Path, recipe: Recipe | None, policy: Path | None) -> Begun:
    """Writes the recipe last: without one nothing has begun."""
    if recipe is None:
        raise PolicyError(f"{folder}: expected a training to resume, found no {_RECIPE}. Name its folder.")
    begun_with = None if policy is None else _identified(policy)
    if begun_with is not None:
        _check_shape(begun_with, recipe, policy)
    make_folder(folder)
    if begun_with is not None:
        save_checkpoint(folder / _BEGUN_WITH, begun_with)
    write_text_atomic(folder / _RECIPE, recipe.model_dump_json(indent=2) + "\n")
    return Begun(recipe, begun_with)


def _check_shape(checkpoint: Checkpoint, recipe: Recipe, policy: Path | None) -> None:
    found = asdict(checkpoint.network.config)
    differing = [
        f"{name} {value!r}, found {found[name]!r}"
        for name, value in recipe.network.model_dump().items()
        if found[name] != value
    ]
    if differing:
        raise PolicyError(
            f"{policy}: expected the network of the recipe {recipe.name!r}: {'; '.join(differing)}."
            " Give the recipe the network of the policy."
        )


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(path.read_text())
    except ValueError as error:
        raise PolicyError(f"{path}: damaged recipe: {error}. Begin in another folder.") from error


def _identified(folder: Path) -> Checkpoint:
    """The checkpoint, with the SHA-256 of its weights among what is known of its training."""
    checkpoint = load_checkpoint(folder)
    return replace(checkpoint, training={**checkpoint.training, "sha256": _digest(folder)})


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise PolicyError(
            f"{folder}: expected a checkpoint: {error.strerror}. Name the folder of a trained policy."
        ) from error
