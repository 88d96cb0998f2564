"""Suites: named lists of problems, split so that what is learned on one can be judged on another.

| suite | what for |
|---|---|
| ``training`` | the only problems that shipped policies learn from |
| ``validation`` | to choose settings and checkpoints |
| ``held-out-families`` | models of families that training has nothing of |
| ``held-out-clusters`` | device counts, device types and bandwidths that training has nothing of |
| ``held-out`` | both, and both at once: what results are reported on |
| ``small`` | a first try, and tests |
| ``optimum`` | small problems of which the optimum can be proved |

A suite is a YAML file:

    description: What it is for.
    limits: {operators: 240, edges: 400, vertices: 32}   # the largest problem; pads observations
    includes: [other-suite]                              # optional
    problems:                                            # each item: every model on every cluster ...
      - models: [alexnet, synthetic-0..7]                # a range of seeds
        clusters: [p100-2x4, random-0..7]
        bandwidths: [0.5, 1.0]                           # optional, factors
        pairing: product                                 # ... or zip: the first on the first, ...
        batch_per_device: 64                             # optional, as are options, optimizer,
        max_operators: 64                                # compute_dtype
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl.errors import SimulationError, unknown_name
from soaprl.strategy.files import describe_validation_error
from soaprl_envs.problems.generators import NamedProblems
from soaprl_envs.problems.specs import ProblemSpec
from soaprl_envs.spaces import DEFAULT_CANDIDATES, SpaceLimits

_PACKAGE = "soaprl_envs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A named list of problems.

    Attributes:
        name: Its name, or its file.
        description: What it is for.
        problems: The problems.
        limits: The largest of them.
    """

    name: str
    description: str
    problems: NamedProblems
    limits: SpaceLimits


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Limits(_Content):
    operators: int
    edges: int
    vertices: int = 64
    candidates: int = DEFAULT_CANDIDATES


class _Item(_Content):
    models: list[str]
    clusters: list[str]
    bandwidths: list[float] = [1.0]
    pairing: Literal["product", "zip"] = "product"
    batch_per_device: int | None = None
    options: dict[str, int | float] = {}
    optimizer: str | None = None
    compute_dtype: str = "float32"
    max_operators: int = 64


class _File(_Content):
    description: str
    limits: _Limits
    includes: list[str] = []
    problems: list[_Item] = []


def suite_names() -> tuple[str, ...]:
    """The suites that come with the package."""
    files = resources.files(_PACKAGE).joinpath("suites").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def load_suite(name_or_path: str | Path, *, folder: Path | None = None) -> Suite:
    """A suite of the package by name, or one in a YAML file.

    Args:
        name_or_path: Which.
        folder: Where captured graphs of zoo models are kept; None: the user's cache.

    Raises:
        UnknownNameError: There is no such suite.
        SimulationError: The file is missing or wrong.
    """
    file = _load(str(name_or_path))
    limits = SpaceLimits(
        operators=file.limits.operators,
        edges=file.limits.edges,
        vertices=file.limits.vertices,
        candidates=file.limits.candidates,
    )
    specs = tuple(_specs(file, (str(name_or_path),)))
    if not specs:
        raise SimulationError(f"suite {str(name_or_path)!r}: expected at least one problem, found none.")
    return Suite(
        name=str(name_or_path),
        description=file.description,
        problems=NamedProblems(specs, folder=folder),
        limits=limits,
    )


def _load(name: str) -> _File:
    where = f"suite {name!r}"
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SimulationError(f"cannot read {where}: {error}.") from error
    elif name in suite_names():
        text = resources.files(_PACKAGE).joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown_name("suite", name, suite_names())
    try:
        return _File.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise SimulationError(f"{where}: expected YAML, found {error}.") from error
    except ValidationError as error:
        raise SimulationError(f"{where}: {describe_validation_error(error)}") from error


def _specs(file: _File, chain: tuple[str, ...]) -> Iterator[ProblemSpec]:
    """The problems of a suite and of those that it includes; `chain` are the suites on the way here."""
    for name in file.includes:
        if name in chain:
            raise SimulationError(f"suite {chain[0]!r} includes itself: {' -> '.join((*chain, name))}.")
        yield from _specs(_load(name), (*chain, name))
    for item in file.problems:
        models = [m for word in item.models for m in _expanded(word)]
        clusters = [c for word in item.clusters for c in _expanded(word)]
        if item.pairing == "zip" and len(models) != len(clusters):
            raise SimulationError(
                f"suite {chain[-1]!r}: expected as many clusters as models to pair, found {len(models)}"
                f" models and {len(clusters)} clusters."
            )
        pairs = zip(models, clusters, strict=True) if item.pairing == "zip" else product(models, clusters)
        for (model, cluster), bandwidth in product(pairs, item.bandwidths):
            yield ProblemSpec(
                model=model,
                cluster=cluster,
                bandwidth=bandwidth,
                batch_per_device=item.batch_per_device,
                options=item.options,
                optimizer=item.optimizer,
                compute_dtype=item.compute_dtype,
                max_operators=item.max_operators,
            )


def _expanded(word: str) -> tuple[str, ...]:
    """``synthetic-3..5`` is ``synthetic-3``, ``synthetic-4``, ``synthetic-5``."""
    match = re.fullmatch(r"(.*-)(\d+)\.\.(\d+)", word)
    if match is None:
        return (word,)
    return tuple(f"{match[1]}{seed}" for seed in range(int(match[2]), int(match[3]) + 1))
