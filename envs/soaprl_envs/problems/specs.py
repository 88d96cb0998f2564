"""Problems described in plain data: enough to build the same problem again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl.cost.optimizers import optimizer_facts
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import GraphError, SimulationError, unknown_name
from soaprl.graph.files import load_graph
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import Option, zoo_models
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.strategy.files import describe_validation_error
from soaprl_envs.problems.captured import zoo_graph
from soaprl_envs.problems.clusters import find_cluster
from soaprl_envs.problems.synthetic import synthetic_graph

SYNTHETIC = "synthetic-"
DEFAULT_BATCH_PER_DEVICE = 64
_GRAPH_SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSpec:
    """A model on a cluster.

    Attributes:
        model: A name of the zoo, ``path/file.py:factory``, the path of a saved graph (``.json``,
            ``.json.gz``), or ``synthetic-SEED`` (`soaprl_envs.problems.synthetic`).
        cluster: A preset (``p100-2x4``), the path of a cluster file, or ``random-SEED``
            (`soaprl_envs.problems.clusters`).
        batch_per_device: Samples for each device; None: the zoo's, or 64. A saved graph has its own.
        options: Options of a zoo model that differ from its defaults.
        bandwidth: Multiplies the bandwidth of all links.
        optimizer: None: the zoo's for the model, or Adam.
        compute_dtype: What matrix units work in.
        max_operators: About how many operators a synthetic model has at most.
    """

    model: str
    cluster: str
    batch_per_device: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    bandwidth: float = 1.0
    optimizer: str | None = None
    compute_dtype: str = "float32"
    max_operators: int = 64

    @property
    def name(self) -> str:
        """Names the problem: unlike specs have unlike names."""
        extras = [f"{key}={value}" for key, value in sorted(self.options.items())]
        if self.batch_per_device is not None:
            extras.append(f"batch={self.batch_per_device}")
        if self.optimizer is not None:
            extras.append(self.optimizer)
        if self.compute_dtype != "float32":
            extras.append(self.compute_dtype)
        if self.model.startswith(SYNTHETIC) and self.max_operators != 64:
            extras.append(f"operators={self.max_operators}")
        if self.bandwidth != 1.0:
            extras.append(f"bandwidth={self.bandwidth:g}")
        return f"{self.model}@{self.cluster}" + (f"[{','.join(extras)}]" if extras else "")

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return _SpecContent.model_validate(self, from_attributes=True).model_dump(mode="json")


class _SpecContent(BaseModel):
    """A spec in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    cluster: str
    batch_per_device: int | None = None
    options: dict[str, int | float] = {}
    bandwidth: float = 1.0
    optimizer: str | None = None
    compute_dtype: str = "float32"
    max_operators: int = 64


def spec_from_json(content: object, *, where: str) -> ProblemSpec:
    """The spec that `ProblemSpec.as_json` made `content` of.

    Raises:
        SimulationError: It is none.
    """
    try:
        return ProblemSpec(**_SpecContent.model_validate(content).model_dump())
    except ValidationError as error:
        raise SimulationError(f"{where}: {describe_validation_error(error)}") from error


def build_problem(spec: ProblemSpec, *, folder: Path | None = None) -> Problem:
    """The problem that `spec` describes.

    Args:
        spec: What to build.
        folder: Where captured graphs of zoo models are kept; None: the user's cache.

    Raises:
        SoaprlError: The model or the cluster cannot be had, or the batch is smaller than 1.
    """
    cluster = find_cluster(spec.cluster, bandwidth=spec.bandwidth)
    graph = _graph(spec, cluster.num_devices, folder)
    zoo = zoo_models().get(spec.model)
    optimizer = spec.optimizer or (zoo.optimizer if zoo else "adam")
    cost = RooflineCostModel(compute_dtype=spec.compute_dtype, optimizer=optimizer_facts(optimizer))
    return Problem(graph=graph, cluster=cluster, cost=cost, options=SimulationOptions(optimizer=optimizer))


def _graph(spec: ProblemSpec, num_devices: int, folder: Path | None) -> OperatorGraph:
    zoo = zoo_models().get(spec.model)
    if spec.options and zoo is None:
        raise GraphError(f"options are for models of the zoo, and {spec.model!r} is none: leave them out.")
    if spec.model.endswith(_GRAPH_SUFFIXES):
        if spec.batch_per_device is not None:
            raise GraphError(f"{spec.model} has its own batch: leave batch_per_device out.")
        return load_graph(Path(spec.model))
    per_device = spec.batch_per_device
    if per_device is None:
        per_device = zoo.batch_per_device if zoo else DEFAULT_BATCH_PER_DEVICE
    if per_device < 1:
        raise GraphError(f"expected at least 1 sample a device, found batch_per_device {per_device}.")
    batch_size = per_device * num_devices
    seed = spec.model.removeprefix(SYNTHETIC)
    if spec.model.startswith(SYNTHETIC) and seed.isdigit():
        return synthetic_graph(int(seed), batch_size, max_operators=spec.max_operators)
    if zoo is not None:
        return zoo_graph(spec.model, batch_size, spec.options, folder=folder)
    if ":" not in spec.model:
        raise unknown_name("model", spec.model, [*zoo_models(), f"{SYNTHETIC}SEED"])
    from soaprl.graph.capture import capture_model

    return capture_model(spec.model, batch_size)
