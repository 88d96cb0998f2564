"""Where environments get their problems from.

A generator is a finite, numbered list of problems that are built when they are asked for, so that a policy
may keep what it knows of a problem by number. Random problems are a list of seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from soaprl.simulator.problem import Problem
from soaprl_envs.problems.specs import ProblemSpec, build_problem


class ProblemGenerator(Protocol):
    """A numbered list of problems."""

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each problem, for people and records; all different."""
        ...

    def problem(self, number: int) -> Problem:
        """Builds problem `number`: always the same one."""
        ...

    def spec(self, number: int) -> ProblemSpec | None:
        """What problem `number` can be built from again; None if it was made in code."""
        ...


class NamedProblems:
    """Problems from specs: zoo models, user files, saved graphs, synthetic graphs; any clusters.

    Args:
        specs: The problems.
        folder: Where captured graphs of zoo models are kept; None: the user's cache.
    """

    def __init__(self, specs: Sequence[ProblemSpec], *, folder: Path | None = None) -> None:
        # Equal specs would be two numbers for one problem.
        self._specs = tuple({spec.name: spec for spec in specs}.values())
        self._folder = folder

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the specs."""
        return tuple(spec.name for spec in self._specs)

    def problem(self, number: int) -> Problem:
        """Builds a problem."""
        return build_problem(self._specs[number], folder=self._folder)

    def spec(self, number: int) -> ProblemSpec:
        """The spec of a problem."""
        return self._specs[number]


class FixedProblems:
    """Problems that the caller made."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = tuple(problems)

    @property
    def names(self) -> tuple[str, ...]:
        """Model and cluster, numbered."""
        return tuple(f"{n}:{p.graph.name}@{p.cluster.name}" for n, p in enumerate(self._problems))

    def problem(self, number: int) -> Problem:
        """The problem."""
        return self._problems[number]

    def spec(self, number: int) -> None:
        """There is none: records of such problems cannot be made."""
        return
