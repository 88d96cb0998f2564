"""What a training's folder holds from the first moment: its recipe, and the policy that it begins with."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from soaprl_agents.checkpoints import Checkpoint, save_checkpoint, weights_digest
from soaprl_agents.ensembles import load_member
from soaprl_agents.training.recipe import Recipe

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.errors import PolicyError
from soaprl.strategy.files import describe_validation_error

_RECIPE, _BEGUN_WITH, _DIGEST = "recipe.json", "begun-with", "begun-with.sha256"
_OTHERWISE = "Put it back, or begin in another folder."


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
    begun_with = _kept_policy(folder)
    if policy is not None:
        load_member(policy)
    if policy is not None and (begun_with is None or weights_digest(policy) != begun_with.training["sha256"]):
        raise PolicyError(
            f"{folder}: expected the policy that the training here began with, found {policy}."
            " Name another folder with --out, or leave the policy out and --resume."
        )
    return Begun(found, begun_with)


def _begin(folder: Path, recipe: Recipe | None, policy: Path | None) -> Begun:
    """Writes the recipe last: without one nothing has begun."""
    if recipe is None:
        raise PolicyError(f"{folder}: expected a training to resume, found no {_RECIPE}. Name its folder.")
    begun_with = None if policy is None else _identified(policy)
    if begun_with is not None:
        _check_shape(begun_with, recipe, policy)
    make_folder(folder)
    if begun_with is None:
        (folder / _DIGEST).unlink(missing_ok=True)
    else:
        save_checkpoint(folder / _BEGUN_WITH, begun_with)
        write_text_atomic(folder / _DIGEST, f"{begun_with.training['sha256']}\n")
    write_text_atomic(folder / _RECIPE, recipe.model_dump_json(indent=2) + "\n")
    return Begun(recipe, begun_with)


def _kept_policy(folder: Path) -> Checkpoint | None:
    """What the training in `folder` began with; None: untrained weights."""
    if not (folder / _DIGEST).is_file():
        return None
    own = folder / _BEGUN_WITH
    try:
        found = _identified(own)
    except PolicyError as error:
        raise PolicyError(
            f"{own}: expected the policy that the training began with: {error} {_OTHERWISE}"
        ) from error
    if found.training["sha256"] != (folder / _DIGEST).read_text(encoding="utf-8").strip():
        raise PolicyError(
            f"{own}: expected the policy that the training began with, found another. {_OTHERWISE}"
        )
    return found


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
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        problem = describe_validation_error(error)
    except (OSError, ValueError) as error:
        problem = str(error)
    raise PolicyError(f"{path}: damaged recipe: {problem}. Begin in another folder.")


def _identified(folder: Path) -> Checkpoint:
    """The checkpoint, with the SHA-256 of its weights among what is known of its training."""
    checkpoint = load_member(folder)
    return replace(checkpoint, training={**checkpoint.training, "sha256": weights_digest(folder)})
