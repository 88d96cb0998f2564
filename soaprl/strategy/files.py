"""Strategy files: JSON that says which model, which cluster, who found it, and how each operator runs.

A file is validated when it is loaded, and again when it is bound to a graph and a cluster, so that a strategy
of another model never runs by accident.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from soaprl.atomic import write_text_atomic
from soaprl.cluster.cluster import Cluster
from soaprl.errors import StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from soaprl.strategy.validation import check_strategy

FORMAT = "soaprl-strategy"
VERSION = 1

Options = dict[str, bool | int | float | str | None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ZooModel(_Strict):
    """A model of the zoo: its name, and the options it was built with."""

    source: Literal["zoo"] = "zoo"
    name: str
    options: Options = {}


class FileModel(_Strict):
    """A user's model: the Python file, the factory in it, and the SHA-256 of the file."""

    source: Literal["file"] = "file"
    path: str
    factory: str
    sha256: str


class GraphModel(_Strict):
    """A saved operator graph: its file. Such a strategy can be simulated, not run."""

    source: Literal["graph"] = "graph"
    path: str


ModelReference = Annotated[ZooModel | FileModel | GraphModel, Field(discriminator="source")]


class ClusterReference(_Strict):
    """The cluster: its name and fingerprint, and all of it where the name is not that of a preset."""

    name: str
    fingerprint: str
    definition: dict[str, Any] | None = None


class FoundBy(_Strict):
    """Who found the strategy: enough to find it again."""

    method: str
    seed: int | None = None
    budget_evaluations: int | None = None
    budget_s: float | None = None
    num_evaluations: int | None = None
    search_time_s: float | None = None
    versions: dict[str, str] = {}


class Assumptions(_Strict):
    """What the predicted time of a strategy holds for.

    Attributes:
        optimizer: What updates the parameters.
        compute_dtype: What matrix units work in.
        gradient_compression: How gradients are sent that devices sum.
        paper: Whether the assumptions of the SOAP paper hold.
    """

    optimizer: str
    compute_dtype: str = "float32"
    gradient_compression: str = "none"
    paper: bool = False


class OperatorRecord(_Strict):
    """One operator's configuration: degrees above 1 by factor name, a device for each task, and its stage."""

    degrees: dict[str, int] = {}
    devices: tuple[int, ...]
    stage: int | None = None

    @model_serializer(mode="wrap")
    def _serialized(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a stage where there is none, as earlier versions wrote it."""
        content: dict[str, Any] = plain(self)
        if self.stage is None:
            del content["stage"]
        return content


class StrategyRecord(_Strict):
    """The content of a strategy file.

    Attributes:
        format: Always ``soaprl-strategy``.
        version: Version of the format.
        model: Where the model comes from.
        batch_size: Global batch size.
        coarsened: Whether the graph was coarsened after capture.
        graph_fingerprint: Of the operator graph that the strategy belongs to.
        cluster: The cluster that the strategy was found for.
        found_by: Who found it.
        predicted_iteration_time_s: What the simulator said; None if it was not simulated.
        assumptions: What that time holds for; None in files that do not say.
        sharding: What is sharded over the devices that hold the same parameters; files without it shard
            nothing.
        micro_batches: Into how many parts the batch is cut, one after the other; files without it: one.
        schedule: In which order stages do the passes of micro-batches; files without it: in none.
        operators: Configurations by operator name.
    """

    format: Literal["soaprl-strategy"] = "soaprl-strategy"
    version: Literal[1] = 1
    model: ModelReference
    batch_size: int
    coarsened: bool
    graph_fingerprint: str
    cluster: ClusterReference
    found_by: FoundBy
    predicted_iteration_time_s: float | None = None
    assumptions: Assumptions | None = None
    sharding: Sharding = Sharding.NONE
    micro_batches: int = 1
    schedule: Schedule = Schedule.NONE
    operators: dict[str, OperatorRecord]

    @model_serializer(mode="wrap")
    def _serialized(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Earlier versions know neither sharding nor micro-batches, and can read what has none."""
        content: dict[str, Any] = plain(self)
        if self.sharding is Sharding.NONE:
            del content["sharding"]
        if self.micro_batches == 1 and self.schedule is Schedule.NONE:
            del content["micro_batches"], content["schedule"]
        return content

    def bind(self, graph: OperatorGraph, cluster: Cluster, *, fingerprint: str | None = None) -> Strategy:
        """The strategy for `graph` on `cluster`.

        Args:
            graph: The model's operators.
            cluster: Where to run; may differ from the cluster of the file, as long as the devices exist.
            fingerprint: Of `graph`, where the caller already has it.

        Raises:
            StrategyError: The strategy belongs to another graph, names an unknown factor, has an illegal
                degree or device, its devices are not as many as its degrees say, or its micro-batches or
                stages are none of this graph.
        """
        self._check_graph(graph, fingerprint or graph_fingerprint(graph))
        self._check_devices(cluster)
        configs = tuple(_config(operator, self.operators[operator.name]) for operator in graph.operators)
        stages = tuple(s for o in graph.operators if (s := self.operators[o.name].stage) is not None)
        strategy = Strategy(configs, self.sharding, self.micro_batches, self.schedule, stages)
        check_strategy(graph, cluster.num_devices, strategy)
        return strategy

    def _check_devices(self, cluster: Cluster) -> None:
        """A strategy of a larger cluster is told as such, and not by its first device that is not there."""
        largest = max((max(record.devices, default=0) for record in self.operators.values()), default=0)
        if self.cluster.fingerprint != cluster.fingerprint and largest >= cluster.num_devices:
            raise StrategyError(
                f"the strategy was found for another cluster: {self.cluster.name!r}, with at least"
                f" {largest + 1} devices; {cluster.name!r} has {cluster.num_devices}. Name the cluster that"
                " it was found for, or search again."
            )

    def _check_graph(self, graph: OperatorGraph, fingerprint: str) -> None:
        missing = [name for name in graph.index if name not in self.operators]
        unknown = [name for name in self.operators if name not in graph.index]
        if missing or unknown:
            details = [f"{what} {_names(names)}" for what, names in _labelled(missing, unknown) if names]
            raise StrategyError(
                f"the strategy belongs to another model than {graph.name!r}: {'; '.join(details)}. Use the"
                " model, options and coarsening that the strategy was found for."
            )
        if fingerprint != self.graph_fingerprint:
            raise StrategyError(
                f"the strategy belongs to another version of {graph.name!r}: the operators have the same"
                f" names, but expected graph fingerprint {self.graph_fingerprint[:12]} (batch"
                f" {self.batch_size}), found {fingerprint[:12]} (batch {graph.batch_size}). Use the batch,"
                " model options and soaprl version that the strategy was found with, or search again."
            )


def operator_records(graph: OperatorGraph, strategy: Strategy) -> dict[str, OperatorRecord]:
    """What a file holds for each operator, by name."""
    records = {}
    stages = strategy.stages or (None,) * len(graph.operators)
    for operator, config, stage in zip(graph.operators, strategy.configs, stages, strict=True):
        degrees = {f.name: d for f, d in zip(operator.factors, config.degrees, strict=True) if d > 1}
        records[operator.name] = OperatorRecord(degrees=degrees, devices=config.devices, stage=stage)
    return records


def save_strategy(path: str | Path, record: StrategyRecord) -> None:
    """Write `record` to `path`, wholly or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    content = record.model_dump(mode="json")
    operators = content.pop("operators")
    # One line for each operator: a whole strategy can be read and compared line by line.
    head = json.dumps(content, indent=2)[: -len("\n}")]
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in operators.items())
    write_text_atomic(path, f'{head},\n  "operators": {{\n{rows}\n  }}\n}}\n')


def load_strategy(path: str | Path) -> StrategyRecord:
    """The content of the strategy file at `path`.

    Raises:
        StrategyError: The file is missing, is not JSON, is no strategy, or is of an unknown version.
    """
    content = _parsed(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise StrategyError(f'{path}: expected a strategy file, JSON with "format": "{FORMAT}".')
    if content.get("version") != VERSION:
        raise StrategyError(
            f"{path}: expected strategy file version {VERSION}, found {content.get('version')!r}. The file"
            " was written by another version of soaprl; update soaprl or write the file again."
        )
    try:
        return StrategyRecord.model_validate(content)
    except ValidationError as error:
        raise StrategyError(f"{path}: {describe_validation_error(error)}") from error


def describe_validation_error(error: ValidationError) -> str:
    """The first problem that pydantic found, with its place, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
    more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return f"at {place}: {first['msg']}{found}{more}."


def _parsed(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StrategyError(f"cannot read strategy file {str(path)!r}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise StrategyError(f"{path}: expected JSON text in UTF-8, found other bytes.") from error
    except json.JSONDecodeError as error:
        raise StrategyError(
            f"{path}: expected JSON, found a mistake at line {error.lineno}, column {error.colno}:"
            f" {error.msg}."
        ) from error
    except RecursionError as error:
        raise StrategyError(f"{path}: expected a strategy file, found JSON nested without end.") from error


def _config(operator: Operator, record: OperatorRecord) -> OpConfig:
    known = {factor.name for factor in operator.factors}
    unknown = [name for name in record.degrees if name not in known]
    if unknown:
        raise StrategyError(
            f"operator {operator.name!r}: expected degrees for factors among"
            f" {', '.join(sorted(known)) or '(none)'}, found one for {unknown[0]!r}."
        )
    return OpConfig(tuple(record.degrees.get(f.name, 1) for f in operator.factors), record.devices)


def _labelled(missing: list[str], unknown: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return (("the strategy lacks operators", missing), ("the model lacks operators", unknown))


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
