"""Recipes: everything that decides what a training does, in YAML."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from soaprl.errors import PolicyError, unknown_name

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class NetworkSection(Section):
    """The network's own widths; see `soaprl_agents.network.NetworkConfig`."""

    hidden: Positive = 64
    rounds: Positive = 3
    device_rounds: Positive = 2
    uses_devices: bool = True
    uses_context: bool = True


class TeachingSection(Section):
    """How a problem is taught.

    Attributes:
        evaluations: Strategies that the teacher simulates for each problem.
        recited: Share of the operators of a winner that become sequential rows, each time.
        disturbance: Share of the operators that are decided otherwise in them.
        kicks: From a local optimum, this share of the operators at most gets random candidates.
        seed: Of the teacher and of the order of the problems; None: the recipe's. Where it is given, lessons
            of the first round do not depend on the recipe's seed: trainings that differ in it can share them.
    """

    evaluations: Positive = 12_000
    recited: Share = 0.5
    disturbance: Share = 0.08
    kicks: Share = 0.3
    seed: int | None = None


class RoundSection(Section):
    """Lessons, and what is learned from them; the rounds after the first start from what the policy finds.

    Attributes:
        problems: Training problems of the round.
        validation: Problems of which the rows are only looked at.
        steps: Steps of imitation on the rows of all rounds so far.
        only: Problems whose names begin with one of these; none: all. For a curriculum.
        keep: Which weights the round hands on: the last ones, or those that decoded the validation problems
            of all rounds so far best when they were judged.
        judge_every: Steps between judgements; the last step is always judged.
    """

    problems: Positive
    validation: Positive = 4
    steps: Positive
    only: tuple[str, ...] = ()
    keep: Literal["last", "best"] = "last"
    judge_every: Positive = 1000


class ImitationSection(Section):
    """The steps of imitation.

    Attributes:
        rate: First learning rate.
        problems: Problems in a step.
        rows: Rows of each of them.
    """

    rate: float = 1e-3
    problems: Positive = 4
    rows: Positive = 64


class PpoSection(Section):
    """Reinforcement learning after imitation; no timesteps: none.

    Attributes:
        timesteps: Decisions in all.
        problems: How many problems.
        only: Problems whose names begin with one of these; none: all.
        samples: Episodes of each problem side by side, of which each is compared with the others' mean.
        epochs: Passes over what was collected.
        batch: Decisions in a step.
        rate: Learning rate.
        clip: How far the probability of a decision may move in an update.
        entropy: Weight of the entropy.
        divergence: Weight of the divergence from the policy that it begins with (Kullback-Leibler), so that
            what was imitated is not forgotten where nothing is rewarded.
        values_first: Decisions after which the policy begins to move: until then only the head that predicts
            values learns, as an untrained one makes advantages of noise.
        baseline_each: Whether advantages are centred and scaled for each problem by itself.
    """

    timesteps: Annotated[int, Field(ge=0)] = 0
    problems: Positive = 4
    only: tuple[str, ...] = ("synthetic-",)
    samples: Positive = 8
    epochs: Positive = 3
    batch: Positive = 512
    rate: float = 2e-4
    clip: float = 0.2
    entropy: float = 0.003
    divergence: Annotated[float, Field(ge=0)] = 0.0
    values_first: Annotated[int, Field(ge=0)] = 0
    baseline_each: bool = True


class Recipe(Section):
    """A training.

    Attributes:
        name: What the checkpoint is called.
        suite: The suite of the problems that are trained on.
        validation: The suite of the problems that are only looked at.
        seed: Of everything.
        network: Its widths.
        teaching: How problems are taught.
        rounds: Of lessons and imitation, one after the other; none: reinforcement learning alone.
        imitation: How it is learned from lessons.
        ppo: Reinforcement learning at the end.
    """

    name: str
    suite: str = "training"
    validation: str = "validation"
    seed: int = 0
    network: NetworkSection = NetworkSection()
    teaching: TeachingSection = TeachingSection()
    rounds: tuple[RoundSection, ...] = ()
    imitation: ImitationSection = ImitationSection()
    ppo: PpoSection = PpoSection()

    @property
    def teaching_seed(self) -> int:
        """Of the teacher and of the order of the problems."""
        return self.seed if self.teaching.seed is None else self.teaching.seed

    @model_validator(mode="after")
    def _does_something(self) -> "Recipe":
        if not self.rounds and not self.ppo.timesteps:
            raise ValueError("expected rounds, or ppo with timesteps: nothing would be learned")
        return self


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with soaprl."""
    folder = files("soaprl_agents") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_recipe(name: str) -> Recipe:
    """A recipe that comes with soaprl, by name, or the one in a YAML file, by path.

    Raises:
        UnknownNameError: There is no recipe of this name.
        PolicyError: The file cannot be read, or something in it is wrong.
    """
    if not name.endswith((".yaml", ".yml")):
        if name not in recipe_names():
            raise unknown_name("recipe", name, recipe_names())
        return parse_recipe((files("soaprl_agents") / "recipes" / f"{name}.yaml").read_text(), name)
    try:
        text = Path(name).read_text()
    except OSError as error:
        raise PolicyError(f"{name}: expected a recipe: {error.strerror}. Name a YAML file.") from error
    return parse_recipe(text, name)


def parse_recipe(text: str, where: str) -> Recipe:
    """The recipe in YAML `text`, which was found in `where`."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PolicyError(f"{where}: expected YAML: {error}") from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise PolicyError(f"{where}, {key}: {first['msg']}, found {first['input']!r}.") from error
