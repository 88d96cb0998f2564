"""A training from its recipe: lessons, imitation, more lessons, reinforcement learning, a checkpoint.

A folder holds all of it:

    recipe.json         the recipe; a folder goes on with the recipe that it began with
    begun-with/         the policy whose weights it began with, if it was given one; begun-with.sha256
    lessons/R-NNN.npz   rows of problem NNN of round R
    R/learner.pt        the state of imitation in round R, the best weights so far among it
    ppo/                the state of reinforcement learning
    curves/             TensorBoard
    model.safetensors, config.json, README.md    the checkpoint, written after every stage

Everything is a function of the recipe. It can be killed at any time: run again on the same folder it goes on,
and loses at most the problem being taught, or the steps since the last save.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from soaprl_agents.cards import checkpoint_card
from soaprl_agents.checkpoints import Checkpoint, feature_config, save_checkpoint
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.training.collect import Lesson, collect_all
from soaprl_agents.training.curves import Curves
from soaprl_agents.training.folder import keep_beginning
from soaprl_agents.training.imitation import draw_rows, row_losses
from soaprl_agents.training.judging import Examination, examination, judge
from soaprl_agents.training.learner import Learner, new_learner, seeded
from soaprl_agents.training.lessons import Lessons
from soaprl_agents.training.recipe import Recipe, RoundSection
from soaprl_envs.pool import ArenaPool
from soaprl_envs.problems import FixedProblems, ProblemGenerator, load_suite
from soaprl_envs.spaces import limits_for

from soaprl.atomic import make_folder
from soaprl.errors import PolicyError
from soaprl.simulator.problem import Problem

_SAVE_EVERY, _LOG_EVERY = 200, 50


class Say(Protocol):
    """Is told what the training does."""

    def __call__(self, what: str, done: float, status: str, /) -> None:
        """`done` is the share of `what` that is done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training under way.

    Attributes:
        recipe: What to do.
        folder: Where.
        problems: What is trained on.
        validation: What is looked at.
        say: Told about progress.
        workers: Processes that teach.
        begun_with: The policy that learns further; None: one that has learned nothing.
    """

    recipe: Recipe
    folder: Path
    problems: ProblemGenerator
    validation: ProblemGenerator
    say: Say
    workers: int = 1
    begun_with: Checkpoint | None = None


def open_training(
    folder: Path, recipe: Recipe | None, say: Say, *, policy: Path | None = None, workers: int = 1
) -> Training:
    """The training in `folder`, begun with `recipe` and `policy` or gone on with as it was begun.

    Raises:
        PolicyError: See `keep_beginning`.
        SoaprlError: There is no such suite.
    """
    begun = keep_beginning(folder, recipe, policy)
    suites = load_suite(begun.recipe.suite), load_suite(begun.recipe.validation)
    return Training(
        recipe=begun.recipe,
        folder=folder,
        problems=suites[0].problems,
        validation=suites[1].problems,
        say=say,
        workers=workers,
        begun_with=begun.policy,
    )


def imitate(training: Training) -> PolicyNetwork:
    """All rounds of lessons and imitation; the network that comes of them."""
    recipe = training.recipe
    taught = None if training.begun_with is None else training.begun_with.network
    network = _untrained(recipe) if taught is None else deepcopy(taught)
    known: list[Lessons] = []
    looked_at: list[Lessons] = []
    examinations: list[Examination] = []
    with Curves(training.folder / "curves") as curves:
        for number, section in enumerate(recipe.rounds):
            found = list(_collected(training, number, section, taught))
            for index, lessons in enumerate(found):
                if not len(lessons.operators):
                    continue
                if index >= section.validation:
                    known.append(lessons)
                    continue
                looked_at.append(lessons)
                examinations.append(examination(planned(training, number, index)[1], lessons))
            if not known or not looked_at:
                raise PolicyError(
                    f"recipe {recipe.name!r}, round {number + 1}: expected problems to learn and to validate"
                    " on, found only ones of which nothing fits in memory. Choose other problems."
                )
            learner = new_learner(network, num_steps=section.steps, rate=recipe.imitation.rate)
            _learn(training, number, learner, known, looked_at, examinations, curves)
            taught = network = learner.kept
            _save(training, network, _stage(learner, number))
    return network


def _untrained(recipe: Recipe) -> PolicyNetwork:
    with seeded(recipe.seed):
        return PolicyNetwork(feature_config(**recipe.network.model_dump()))


def _collected(
    training: Training, number: int, section: RoundSection, network: PolicyNetwork | None
) -> Iterator[Lessons]:
    """The lessons of a round, those for validation first."""
    folder = training.folder / "lessons"
    make_folder(folder)
    total = section.validation + section.problems
    planning = []
    for index in range(total):
        name, make = planned(training, number, index)
        seed = training.recipe.teaching_seed * 1_000_000 + number * 10_000 + index
        planning.append(Lesson(name, make, seed, folder / f"{number}-{index:03d}.npz"))

    def say(done: int, name: str) -> None:
        training.say(f"lessons {number + 1}", done / total, f"{name}, {done} of {total}")

    teaching = training.recipe.teaching
    return collect_all(planning, teaching, network, workers=training.workers, say=say)


def planned(training: Training, number: int, index: int) -> tuple[str, Callable[[], Problem]]:
    """Name and maker of lesson `index` of round `number`; those for validation come first.

    Problems come in a random order, each of those of a round once before any comes twice. For validation it
    is the same order whatever the recipe's seed, so that trainings that differ in it can be compared.
    """
    rounds = training.recipe.rounds
    validates = index < rounds[number].validation
    source = training.validation if validates else training.problems
    before = sum(one.validation if validates else one.problems for one in rounds[:number])
    place = before + index - (0 if validates else rounds[number].validation)
    order = _in_order(
        source, rounds[number].only, (0, 1) if validates else (training.recipe.teaching_seed, 0)
    )
    which = order[place % len(order)]
    return source.names[which], partial(source.problem, which)


def _in_order(source: ProblemGenerator, only: tuple[str, ...], seed: tuple[int, int]) -> list[int]:
    """The numbers of problems whose names begin with one of `only` (none: all), in a random order."""
    known = [which for which, name in enumerate(source.names) if name.startswith(only or ("",))]
    if not known:
        raise PolicyError(f"recipe: expected problems whose names begin with one of {only}, found none.")
    found: list[int] = np.random.default_rng(seed).permutation(known).tolist()
    return found


def _learn(
    training: Training,
    number: int,
    learner: Learner,
    known: Sequence[Lessons],
    looked_at: Sequence[Lessons],
    examinations: Sequence[Examination],
    curves: Curves,
) -> None:
    """The steps of a round."""
    folder, settings = training.folder / str(number), training.recipe.imitation
    section = training.recipe.rounds[number]
    make_folder(folder)
    learner.restore(folder)
    begins_trained = number > 0 or training.begun_with is not None
    offset = sum(section.steps for section in training.recipe.rounds[:number])
    if learner.step == 0 and begins_trained and section.keep == "best":
        _judge(learner, section, examinations, curves, offset)
    while learner.step < learner.num_steps:
        rng = np.random.default_rng((training.recipe.seed, 2, number, learner.step))
        rows = draw_rows(known, rng, num_problems=settings.problems, rows_each=settings.rows)
        losses = row_losses(learner.network, rows)
        learner.update(losses.loss.mean())
        if learner.step % _LOG_EVERY == 0:
            curves.rows("imitation", losses, rows, offset + learner.step)
            status = f"regret {losses.regret.mean().item():.4f}"
            training.say(f"imitation {number + 1}", learner.step / learner.num_steps, status)
        if learner.step % section.judge_every == 0 or learner.step == learner.num_steps:
            _judge(learner, section, examinations, curves, offset + learner.step)
        if learner.step % _SAVE_EVERY == 0 or learner.step == learner.num_steps:
            # After judging: what is on disk knows the judgements of all its steps.
            learner.save(folder)
            with evaluating(learner.average):
                shown = draw_rows(looked_at, rng, num_problems=4, rows_each=256)
                curves.rows("valid", row_losses(learner.average, shown), shown, offset + learner.step)
            _save(training, learner.kept, _stage(learner, number))


def _judge(
    learner: Learner, section: RoundSection, examinations: Sequence[Examination], curves: Curves, step: int
) -> None:
    """Judge the average as it is now; keep it if the round keeps the best and this is it."""
    with evaluating(learner.average):
        verdict = judge(learner.average, examinations)
    curves.verdict(verdict, step)
    if section.keep == "best":
        learner.consider(verdict.best_excess)
    if learner.best is not None:
        curves.kept(learner.best, step)


def _stage(learner: Learner, number: int) -> str:
    """Which weights are handed on."""
    if learner.best is None:
        return f"step {learner.step} of round {number + 1}"
    kept = learner.best
    return (
        f"step {kept.step} of round {number + 1}, the best of those judged up to step {learner.step}"
        f" (best_excess {kept.excess:.4f})"
    )


def _save(training: Training, network: PolicyNetwork, stage: str) -> None:
    trained: dict[str, Any] = {"recipe": training.recipe.model_dump(mode="json"), "stage": stage}
    if training.begun_with is not None:
        before = training.begun_with
        trained["begun_with"] = {"name": before.name, **before.training}
    checkpoint = Checkpoint(network=network, name=training.recipe.name, training=trained)
    save_checkpoint(training.folder, checkpoint, checkpoint_card(checkpoint))


@contextmanager
def evaluating(network: PolicyNetwork) -> Iterator[None]:
    """Inside, `network` is looked at, not trained."""
    network.eval()
    with torch.inference_mode():
        yield


def train(training: Training) -> Path:
    """All stages of a training, and its checkpoint: the folder of `training`.

    Raises:
        PolicyError: Something in the folder is damaged or belongs to another training.
        OutputError: The folder cannot be written.
    """
    recipe = training.recipe
    network = imitate(training)
    if recipe.ppo.timesteps:
        network = _reinforced(training, network)
        _save(training, network, f"after {recipe.ppo.timesteps} decisions of reinforcement learning")
    return training.folder


def _reinforced(training: Training, network: PolicyNetwork) -> PolicyNetwork:
    # stable-baselines3 takes a second to import: only where it is used.
    from soaprl_agents.reinforcement import reinforce

    recipe, known = training.recipe, training.problems
    section = recipe.ppo
    chosen = _in_order(known, section.only, (recipe.seed, 3))[: section.problems]
    problems = FixedProblems([known.problem(number) for number in chosen])
    pool = ArenaPool(problems, limits_for([problems.problem(n) for n in range(len(chosen))]))
    return reinforce(
        network,
        pool,
        section,
        seed=recipe.seed,
        folder=training.folder / "ppo",
        say=lambda done, reward: training.say("reinforcement", done, f"log speed-up {reward:.4f}"),
    )
