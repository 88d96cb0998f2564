"""Results as records that anyone can replay: model, cluster, strategy, time, seed, versions.

`validate` builds the problem of a record again and simulates its strategy; a claimed time that does not come
out, to the last bit, is an error, not a warning.
"""

import json
from collections.abc import Callable
from pathlib import Path
from platform import python_version
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl import __version__
from soaprl.atomic import write_text_atomic
from soaprl.errors import SimulationError
from soaprl.graph.files import graph_fingerprint
from soaprl.simulator import Evaluation, simulate
from soaprl.simulator.problem import Problem
from soaprl.strategy.files import OperatorRecord, describe_validation_error, operator_records
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_strategy
from soaprl_envs.arena import Arena
from soaprl_envs.problems.specs import ProblemSpec, build_problem, spec_from_json

FORMAT = "soaprl-result"


class ResultRecord(BaseModel):
    """What was found for a problem.

    Attributes:
        format: Always ``soaprl-result``.
        version: Version of the format.
        problem: The content of a `ProblemSpec`.
        graph_fingerprint: Of the model's operator graph.
        cluster_fingerprint: Of the cluster.
        method: Who found the strategy.
        seed: The seed it was found with; None if there was none.
        iteration_time_s: What the simulator said.
        feasible: Whether it fits in memory.
        peak_memory_bytes: Largest peak of any device.
        baseline: Name of the baseline.
        baseline_time_s: Its effective time.
        versions: Of what had a part in the numbers.
        operators: The strategy: configurations by operator name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["soaprl-result"] = "soaprl-result"
    version: Literal[1] = 1
    problem: dict[str, Any]
    graph_fingerprint: str
    cluster_fingerprint: str
    method: str
    seed: int | None
    iteration_time_s: float
    feasible: bool
    peak_memory_bytes: int
    baseline: str
    baseline_time_s: float
    versions: dict[str, str]
    operators: dict[str, OperatorRecord]

    @property
    def spec(self) -> ProblemSpec:
        """What the problem can be built from."""
        return spec_from_json(self.problem, where="the problem of a result record")


def make_record(
    arena: Arena, strategy: Strategy, evaluation: Evaluation, *, method: str, seed: int | None
) -> ResultRecord:
    """The record of a strategy.

    Raises:
        SimulationError: The problem was made in code, so that it cannot be built again.
    """
    problem = arena.problem
    if arena.spec is None:
        raise SimulationError(
            f"problem {arena.name!r} was made in code, so that a record of it could not be replayed: describe"
            " it by a ProblemSpec (a saved graph, a model's file, a cluster file)."
        )
    return ResultRecord(
        problem=arena.spec.as_json(),
        graph_fingerprint=graph_fingerprint(problem.graph),
        cluster_fingerprint=problem.cluster.fingerprint,
        method=method,
        seed=seed,
        iteration_time_s=evaluation.iteration_time_s,
        feasible=evaluation.feasible,
        peak_memory_bytes=evaluation.peak_memory_bytes,
        baseline=arena.baseline.name,
        baseline_time_s=arena.baseline_s,
        versions={"soaprl": __version__, "python": python_version(), "numpy": np.__version__},
        operators=operator_records(problem.graph, strategy),
    )


def validate(record: ResultRecord, *, build: Callable[[ProblemSpec], Problem] = build_problem) -> Evaluation:
    """Replays a record: builds its problem, simulates its strategy, compares.

    Args:
        record: What is claimed.
        build: Builds problems.

    Returns:
        What the simulator says now, which is what the record claims.

    Raises:
        SimulationError: The model or the cluster is not the one of the record, or its time, memory or
            feasibility does not replay.
        SoaprlError: The problem cannot be built, or the strategy does not fit it.
    """
    spec = record.spec
    problem = build(spec)
    where = f"the record of {record.method!r} for {spec.name!r}"
    pairs = (
        ("graph", record.graph_fingerprint, graph_fingerprint(problem.graph)),
        ("cluster", record.cluster_fingerprint, problem.cluster.fingerprint),
    )
    for what, claimed, found in pairs:
        if claimed != found:
            raise SimulationError(
                f"{where}: expected the {what} with the fingerprint {claimed[:12]}, found {found[:12]}. The"
                f" {what} has changed since (recorded with soaprl {record.versions.get('soaprl', '?')})."
            )
    result = simulate(problem, _strategy(record, problem, where))
    found_numbers = {
        "iteration_time_s": result.iteration_time_s,
        "peak_memory_bytes": result.peak_memory_bytes,
        "feasible": result.feasible,
    }
    for name, value in found_numbers.items():
        if getattr(record, name) != value:
            raise SimulationError(
                f"{where} does not replay: it claims {name} {getattr(record, name)!r}, the simulator says"
                f" {value!r}. The record was changed, or made with another version."
            )
    return Evaluation(
        iteration_time_s=result.iteration_time_s,
        peak_memory_bytes=result.peak_memory_bytes,
        feasible=result.feasible,
        communication_bytes=result.communication_bytes,
    )


def save_record(path: str | Path, record: ResultRecord) -> None:
    """Writes a record to `path`, wholly or not at all."""
    write_text_atomic(path, json.dumps(record.model_dump(mode="json"), indent=1) + "\n")


def load_record(path: str | Path) -> ResultRecord:
    """The record in the file at `path`; its claims are not checked yet, `validate` does that.

    Raises:
        SimulationError: The file is missing, or no record.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SimulationError(f"cannot read the result record {str(path)!r}: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SimulationError(f'{path}: expected a result record, JSON with "format": "{FORMAT}".')
    try:
        return ResultRecord.model_validate(content)
    except ValidationError as error:
        raise SimulationError(f"{path}: {describe_validation_error(error)}") from error


def _strategy(record: ResultRecord, problem: Problem, where: str) -> Strategy:
    """The strategy of a record for the problem that it names."""
    graph = problem.graph
    if set(record.operators) != set(graph.index):
        raise SimulationError(f"{where}: its operators are not those of {graph.name!r}.")
    configs = []
    for operator in graph.operators:
        mine = record.operators[operator.name]
        unknown = set(mine.degrees) - {factor.name for factor in operator.factors}
        if unknown:
            raise SimulationError(
                f"{where}: operator {operator.name!r} has no factor {sorted(unknown)[0]!r}."
            )
        degrees = tuple(mine.degrees.get(factor.name, 1) for factor in operator.factors)
        configs.append(OpConfig(degrees, mine.devices))
    strategy = Strategy(tuple(configs))
    check_strategy(graph, problem.cluster.num_devices, strategy)
    return strategy
