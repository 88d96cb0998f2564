"""From the words of a command line to a model, a cluster and the problem they make."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from soaprl.cli.costs import measured_costs
from soaprl.cli.output import say
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import load_cluster
from soaprl.cost.optimizers import optimizer_facts
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import GraphError, SimulationError, SoaprlError, unknown_name
from soaprl.graph.files import graph_fingerprint, load_graph
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import Option, zoo_models
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.strategy.files import (
    Assumptions,
    FileModel,
    GraphModel,
    ModelReference,
    ZooModel,
    load_strategy,
)
from soaprl.strategy.strategy import Sharding, Strategy

DEFAULT_BATCH_PER_DEVICE = 64
DEFAULT_OPTIMIZER = "adam"
GRAPH_SUFFIXES = (".json", ".json.gz")
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How an iteration is costed; None: not said.

    Attributes:
        optimizer: Its name; otherwise the model's usual one.
        compute_dtype: What matrix units work in, also as ``fp32``, ``bf16`` or ``fp16``; otherwise float32.
        compression: How gradients are sent that devices sum; otherwise as they are.
        paper: Whether the paper's assumptions hold; otherwise not.
        profiles: Files with measured times; none: all are estimated.
    """

    optimizer: str | None = None
    compute_dtype: str | None = None
    compression: str | None = None
    paper: bool | None = None
    profiles: Sequence[Path] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model as named on the command line; `batch_size` None is the default for the cluster."""

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)
    batch_size: int | None = None
    coarsened: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A chosen model with the problem that it makes on a cluster.

    Attributes:
        choice: The model.
        problem: The problem.
        assumptions: What costs are assumed.
        sharding: What strategies are to shard; None: what their file or the method says.
        micro_batches: Into how many micro-batches they are to cut the batch; 1: what the method says.
    """

    choice: ModelChoice
    problem: Problem
    assumptions: Assumptions
    sharding: Sharding | None = None
    micro_batches: int = 1

    @property
    def title(self) -> str:
        """Names the problem above a table."""
        graph, cluster = self.problem.graph, self.problem.cluster
        return f"{graph.name}, batch {graph.batch_size}, on {cluster.name}"

    def as_json(self) -> dict[str, Any]:
        """The keys that tell in JSON which problem a result belongs to."""
        graph, cluster = self.problem.graph, self.problem.cluster
        return {
            "model": graph.name,
            "batch_size": graph.batch_size,
            "cluster": cluster.name,
            "cost_model": self.problem.cost.name,
            "gradient_compression": self.problem.options.gradient_compression,
        }


def prepare(
    choice: ModelChoice,
    cluster_name: str,
    execution: Execution,
    sharding: Sharding | None = None,
    micro_batches: int = 1,
) -> Prepared:
    """The problem of training the chosen model; what capture assumed is said on standard error.

    Raises:
        SoaprlError: The model or the cluster cannot be had.
    """
    cluster = load_cluster(cluster_name)
    # What is wrong with the options is said at once, not after the capture of a large model.
    _costing(execution, DEFAULT_OPTIMIZER)
    graph = load_model(choice, cluster.num_devices)
    for note in graph.notes:
        say(f"soaprl: {note}")
    prepared = prepared_problem(choice, graph, cluster, execution, sharding)
    return replace(prepared, micro_batches=micro_batches)


def parse_options(words: list[str] | None) -> dict[str, Option]:
    """The ``NAME=VALUE`` words as numbers by name."""
    options: dict[str, Option] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        try:
            options[name] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            equals = ""
        if not (name and equals and isfinite(options[name])):
            raise SoaprlError(f"expected --option NAME=VALUE with a number, found {word!r}.")
    return options


def model_reference(choice: ModelChoice) -> ModelReference:
    """What a strategy file says about the model; raises the errors of a wrong name."""
    if choice.name.endswith(GRAPH_SUFFIXES):
        return GraphModel(path=choice.name)
    if ":" in choice.name or choice.name.endswith(".py"):
        from soaprl.graph.capture import parse_user_file

        file = parse_user_file(choice.name)
        return FileModel(path=str(file.path), factory=file.factory, sha256=file.sha256)
    if choice.name not in zoo_models():
        raise unknown_name("model", choice.name, zoo_models())
    return ZooModel(name=choice.name, options=dict(choice.options))


def load_model(choice: ModelChoice, num_devices: int) -> OperatorGraph:
    """The operator graph of the chosen model; only a saved one comes without torch.

    Raises:
        SoaprlError: The model cannot be found, made or captured, or its batch is smaller than the devices.
    """
    reference = model_reference(choice)
    if choice.options and not isinstance(reference, ZooModel):
        raise SoaprlError(f"--option is for models of the zoo, and {choice.name!r} is a file: set it there.")
    if isinstance(reference, GraphModel):
        return _saved_graph(choice, num_devices)
    batch_size = choice.batch_size
    if batch_size is None:
        zoo = zoo_models().get(choice.name)
        batch_size = num_devices * (zoo.batch_per_device if zoo else DEFAULT_BATCH_PER_DEVICE)
    _check_batch(choice.name, batch_size, num_devices)
    from soaprl.graph.capture import capture_model

    # What the user's code prints is not the command's result.
    with redirect_stdout(sys.stderr):
        return capture_model(choice.name, batch_size, options=choice.options, coarsened=choice.coarsened)


def prepared_problem(
    choice: ModelChoice,
    graph: OperatorGraph,
    cluster: Cluster,
    execution: Execution,
    sharding: Sharding | None = None,
) -> Prepared:
    """The problem of training `graph` on `cluster`."""
    zoo = zoo_models().get(graph.name)
    assumptions, roofline, options = _costing(execution, zoo.optimizer if zoo else DEFAULT_OPTIMIZER)
    cost = measured_costs(execution.profiles, roofline, cluster) if execution.profiles else roofline
    problem = Problem(graph=graph, cluster=cluster, cost=cost, options=options)
    return Prepared(choice=choice, problem=problem, assumptions=assumptions, sharding=sharding)


def _costing(
    execution: Execution, usual_optimizer: str
) -> tuple[Assumptions, RooflineCostModel, SimulationOptions]:
    """What a strategy file says about the costing, the estimates, and the simulator's options."""
    dtype = execution.compute_dtype or "float32"
    assumptions = Assumptions(
        optimizer=execution.optimizer or usual_optimizer,
        compute_dtype=_SHORT_DTYPES.get(dtype, dtype),
        gradient_compression=execution.compression or "none",
        paper=bool(execution.paper),
    )
    roofline = RooflineCostModel(
        compute_dtype=assumptions.compute_dtype,
        optimizer=optimizer_facts(assumptions.optimizer),
        paper=assumptions.paper,
    )
    options = SimulationOptions(
        optimizer=assumptions.optimizer,
        paper=assumptions.paper,
        gradient_compression=assumptions.gradient_compression,
    )
    return assumptions, roofline, options


def _saved_graph(choice: ModelChoice, num_devices: int) -> OperatorGraph:
    graph = load_graph(Path(choice.name))
    if choice.batch_size not in (None, graph.batch_size):
        raise GraphError(
            f"{choice.name} was captured for a batch of {graph.batch_size}, found --batch-size "
            f"{choice.batch_size}: leave it out, or capture the model again."
        )
    _check_batch(choice.name, graph.batch_size, num_devices)
    return graph


def _check_batch(name: str, batch_size: int, num_devices: int) -> None:
    if batch_size < num_devices:
        raise SimulationError(
            f"batch smaller than the devices: expected at least {num_devices} samples, one a device,"
            f" found {batch_size} for {name!r}. Raise --batch-size or choose a smaller cluster."
        )


def load_start(path: Path | None, problem: Problem) -> Strategy | None:
    """The strategy in the file at `path`, for the problem's graph and cluster; None without a path.

    Raises:
        StrategyError: The file is wrong, or its strategy does not fit the graph or the cluster.
    """
    if path is None:
        return None
    graph = problem.graph
    return load_strategy(path).bind(graph, problem.cluster, fingerprint=graph_fingerprint(graph))
