"""What each part of the policy and of its training contributes: trainings that leave one out.

    soaprl train --recipe generalist --out out/generalist
    python benchmarks/ablations.py --training out/generalist --steps 4000 --seeds 3 --out out/ablations

At a size of minutes for each row: ``--steps 1000 --timesteps 8000 --seeds 1``.

All variants learn from the lessons of one finished training, for the same number of steps, and are judged as
`soaprl_agents.training.judging` does: by what they decode, on the training's validation problems and on
problems of held-out families. Finished variants are kept in the folder and are not trained again.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from soaprl_agents.checkpoints import CONFIG, Checkpoint, feature_config, load_checkpoint, save_checkpoint
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.reinforcement import reinforce
from soaprl_agents.training.collect import Lesson, collect
from soaprl_agents.training.imitation import draw_rows, row_losses
from soaprl_agents.training.judging import Examination, Verdict, examination, judge
from soaprl_agents.training.learner import new_learner, seeded
from soaprl_agents.training.lessons import Lessons, load_lessons
from soaprl_agents.training.recipe import PpoSection, TeachingSection
from soaprl_agents.training.run import Training, evaluating, open_training, planned
from soaprl_envs.pool import ArenaPool
from soaprl_envs.problems import FixedProblems, load_suite
from soaprl_envs.spaces import limits_for

from soaprl.atomic import make_folder, write_text_atomic

HELD_OUT = tuple(
    f"{m}@{c}" for m in ("rnntc", "nmt", "gpt2", "dlrm", "moe") for c in ("p100-1x4", "p100-4x4")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A training.

    Attributes:
        name: For the table.
        imitates: Whether it learns from lessons.
        uses_context: Whether a decision sees those before it; without it is one-shot.
        uses_devices: Whether the network reads the cluster.
        timesteps: Decisions of reinforcement learning.
        baseline_each: Whether problems have baselines of their own.
        divergence: As `PpoSection` has it.
    """

    name: str
    imitates: bool = True
    uses_context: bool = True
    uses_devices: bool = True
    timesteps: int = 0
    baseline_each: bool = True
    divergence: float = 0.0


def variants(timesteps: int) -> tuple[Variant, ...]:
    """All trainings; those with reinforcement learning make `timesteps` decisions."""
    return (
        Variant(name="imitation"),
        Variant(name="untrained", imitates=False),
        Variant(name="imitation, one-shot", uses_context=False),
        Variant(name="imitation, no device encoder", uses_devices=False),
        Variant(name="PPO alone", imitates=False, timesteps=timesteps),
        Variant(
            name="PPO alone, one baseline for all", imitates=False, timesteps=timesteps, baseline_each=False
        ),
        Variant(name="imitation, then PPO", timesteps=timesteps),
        Variant(name="imitation, then PPO, one baseline for all", timesteps=timesteps, baseline_each=False),
        Variant(name="imitation, then PPO, divergence 0.1", timesteps=timesteps, divergence=0.1),
    )


class Bench:
    """Lessons, problems to judge by, and where results are kept."""

    def __init__(self, training: Training, folder: Path, steps: int, timesteps: int) -> None:
        self.training, self.folder, self.steps, self.timesteps = training, folder, steps, timesteps
        make_folder(folder)
        rounds = training.recipe.rounds
        self.known: list[Lessons] = []
        self.validation: list[Examination] = []
        for number, section in enumerate(rounds):
            for index in range(section.validation + section.problems):
                name, make = planned(training, number, index)
                lessons = load_lessons(training.folder / "lessons" / f"{number}-{index:03d}.npz", name)
                if index >= section.validation and len(lessons.operators):
                    self.known.append(lessons)
                elif number == 0 and index < section.validation:
                    self.validation.append(examination(make, lessons))
        self.held_out = [self._held_out(name) for name in HELD_OUT]

    def _held_out(self, name: str) -> Examination:
        """A problem that nothing learns from; the teacher only says what can be reached."""
        known = load_suite("held-out-families").problems
        make = partial(known.problem, known.names.index(name))
        lesson = Lesson(name, make, 0, self.folder / f"{name}.npz")
        return examination(make, collect(lesson, TeachingSection(evaluations=6000), None))

    def verdicts(self, variant: Variant, seed: int) -> tuple[Verdict, Verdict]:
        """On validation problems and on held-out ones."""
        path = self.folder / f"{variant.name}-{seed}-{self.steps}-{variant.timesteps}.json"
        if not path.is_file():
            network = self._trained(variant, seed)
            with evaluating(network):
                found = [judge(network, problems) for problems in (self.validation, self.held_out)]
            write_text_atomic(path, json.dumps([one._asdict() for one in found], indent=1) + "\n")
        one, other = json.loads(path.read_text())
        return Verdict(**one), Verdict(**other)

    def _trained(self, variant: Variant, seed: int) -> PolicyNetwork:
        widths = self.training.recipe.network.model_dump()
        widths |= {"uses_context": variant.uses_context, "uses_devices": variant.uses_devices}
        with seeded(seed):
            network = PolicyNetwork(feature_config(**widths))
        if variant.imitates:
            # Variants that go on from there are what they are compared with, and more.
            kept = (
                self.folder / f"imitation-{seed}-{self.steps}-{variant.uses_context}-{variant.uses_devices}"
            )
            if not (kept / CONFIG).is_file():
                make_folder(kept)
                save_checkpoint(kept, Checkpoint(network=self._imitated(network, seed), name="ablation"))
            network = load_checkpoint(kept).network
        if variant.timesteps:
            network = self._reinforced(network, variant, seed)
        return network

    def _imitated(self, network: PolicyNetwork, seed: int) -> PolicyNetwork:
        settings = self.training.recipe.imitation
        learner = new_learner(network, num_steps=self.steps, rate=settings.rate)
        for step in range(self.steps):
            rng = np.random.default_rng((seed, step))
            rows = draw_rows(self.known, rng, num_problems=settings.problems, rows_each=settings.rows)
            learner.update(row_losses(learner.network, rows).loss.mean())
        return learner.average

    def _reinforced(self, network: PolicyNetwork, variant: Variant, seed: int) -> PolicyNetwork:
        section = PpoSection(
            timesteps=variant.timesteps,
            problems=8,
            baseline_each=variant.baseline_each,
            divergence=variant.divergence,
        )
        source = self.training.problems
        names = [n for n, name in enumerate(source.names) if name.startswith(section.only)]
        chosen = np.random.default_rng((seed, 3)).permutation(names)[: section.problems].tolist()
        problems = FixedProblems([source.problem(number) for number in chosen])
        pool = ArenaPool(problems, limits_for([problems.problem(n) for n in range(len(chosen))]))
        folder = self.folder / "ppo" / f"{variant.name}-{seed}-{self.steps}-{variant.timesteps}"
        return reinforce(network, pool, section, seed=seed, folder=folder, say=lambda done, reward: None)


def report(
    bench: Bench, names: Sequence[str], found: dict[str, list[tuple[Verdict, Verdict]]], command: str
) -> str:
    """A section of the document."""
    budget = f"{bench.steps:,} steps of imitation, {bench.timesteps:,} decisions of PPO"
    text = (
        f"## {budget}\n\n{platform.processor() or platform.machine()},"
        f" Python {platform.python_version()}, torch {torch.__version__}. Written by `{command}`.\n\n"
        f"Each variant learned {bench.steps:,} steps from {len(bench.known)} problems' lessons of one"
        " training; mean and range over seeds. *First* is the log(time / time of the teacher's winner) of the"
        " most probable strategy, *best of 16* of the best of 16 samples and data parallelism, at most 1,"
        " mean over problems; *gain* is the share of the winner's log speed-up that the latter reaches."
        " As a problem counts at most 1, the two of dlrm are most of the held-out gain."
        f" Validation: {len(bench.validation)} problems; held-out: {', '.join(HELD_OUT)}, whose winners the"
        " teacher found in 6,000 evaluations.\n\n"
        "| variant | seeds | validation: first | best of 16 | gain | held-out: first | best of 16 | gain |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for name in names:
        cells = [name, str(len(found[name]))]
        for which in (0, 1):
            verdicts = [pair[which] for pair in found[name]]
            cells += [_spread([v.first_excess for v in verdicts]), _spread([v.best_excess for v in verdicts])]
            cells.append(f"{np.mean([v.speed_up for v in verdicts]) / verdicts[0].winner_speed_up:.0%}")
        text += f"| {' | '.join(cells)} |\n"
    return text


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def main() -> None:
    """Trains what is missing, and writes the table."""
    parser = argparse.ArgumentParser(description="Train the policy with parts left out.")
    parser.add_argument("--training", type=Path, required=True, help="folder of a finished training")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--timesteps", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of variants, separated by semicolons; default: all")
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    parser.add_argument("--append", action="store_true", help="add a section to the document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    training = open_training(arguments.training, None, lambda what, done, status: None)
    bench = Bench(training, arguments.out, arguments.steps, arguments.timesteps)
    wanted = set(filter(None, arguments.only.split(";")))
    chosen = [v for v in variants(arguments.timesteps) if not wanted or v.name in wanted]
    found: dict[str, list[tuple[Verdict, Verdict]]] = {}
    for variant in chosen:
        for seed in range(arguments.seeds):
            with console.status(f"{variant.name}, seed {seed} ..."):
                found.setdefault(variant.name, []).append(bench.verdicts(variant, seed))
            console.print(variant.name, seed, *found[variant.name][-1], highlight=False)
    command = " ".join(["python", "benchmarks/ablations.py", *sys.argv[1:]])
    text = report(bench, [v.name for v in chosen], found, command)
    path = Path(__file__).with_suffix(".md")
    before = path.read_text().rstrip() if arguments.append else "# What each part of the policy contributes"
    write_text_atomic(path, f"{before}\n\n{text}")


if __name__ == "__main__":
    main()
