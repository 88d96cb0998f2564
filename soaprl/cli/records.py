"""Strategy files from and to what a command holds."""

from dataclasses import dataclass
from pathlib import Path

from soaprl import __version__
from soaprl.cli.inputs import ModelChoice, Prepared, load_model, model_reference
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import cluster_from_dict, cluster_to_dict, load_cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.errors import SoaprlError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import Option
from soaprl.search.task import Budget, SearchResult
from soaprl.strategy.files import (
    ClusterReference,
    FileModel,
    FoundBy,
    GraphModel,
    StrategyRecord,
    ZooModel,
    load_strategy,
    operator_records,
)
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStrategy:
    """A strategy file with the graph and the cluster that it names."""

    record: StrategyRecord
    graph: OperatorGraph
    cluster: Cluster
    strategy: Strategy


def make_record(prepared: Prepared, result: SearchResult, budget: Budget) -> StrategyRecord:
    """The content of the strategy file for what a search found."""
    graph = prepared.problem.graph
    return StrategyRecord(
        model=model_reference(prepared.choice),
        batch_size=graph.batch_size,
        coarsened=prepared.choice.coarsened,
        graph_fingerprint=graph_fingerprint(graph),
        cluster=cluster_reference(prepared.problem.cluster),
        found_by=FoundBy(
            method=result.method,
            seed=result.seed,
            budget_evaluations=budget.evaluations,
            budget_s=budget.seconds,
            num_evaluations=result.num_evaluations,
            search_time_s=result.search_time_s,
            versions={"soaprl": __version__},
        ),
        predicted_iteration_time_s=result.evaluation.iteration_time_s,
        assumptions=prepared.assumptions,
        sharding=result.strategy.sharding,
        micro_batches=result.strategy.micro_batches,
        schedule=result.strategy.schedule,
        operators=operator_records(graph, result.strategy),
    )


def cluster_reference(cluster: Cluster) -> ClusterReference:
    """The cluster's name if that is all it takes to make it again, otherwise the whole cluster."""
    try:
        preset = cluster_from_name(cluster.name).fingerprint == cluster.fingerprint
    except SoaprlError:
        preset = False
    definition = None if preset else cluster_to_dict(cluster)
    return ClusterReference(name=cluster.name, fingerprint=cluster.fingerprint, definition=definition)


def choice_of(record: StrategyRecord) -> ModelChoice:
    """The model that a strategy file names, as if it were named on the command line."""
    model = record.model
    options: dict[str, Option] = {}
    match model:
        case ZooModel():
            name = model.name
            options = {key: value for key, value in model.options.items() if isinstance(value, int | float)}
        case FileModel():
            name = f"{model.path}:{model.factory}"
        case GraphModel():
            name = model.path
    return ModelChoice(name=name, options=options, batch_size=record.batch_size, coarsened=record.coarsened)


def load_bound_strategy(path: Path) -> BoundStrategy:
    """The strategy in the file at `path` with its model captured again and its cluster.

    Raises:
        SoaprlError: The file is wrong, or its model or cluster cannot be had or has changed.
    """
    record = load_strategy(path)
    reference = record.cluster
    if reference.definition is None:
        cluster = load_cluster(reference.name)
    else:
        cluster = cluster_from_dict(reference.definition, where=f"the cluster in {path}")
    if cluster.fingerprint != reference.fingerprint:
        raise StrategyError(
            f"{path}: the cluster {reference.name!r} is not the one that the strategy was found for: its"
            " devices or links have changed since. Search again."
        )
    graph = load_model(choice_of(record), cluster.num_devices)
    strategy = record.bind(graph, cluster, fingerprint=graph_fingerprint(graph))
    return BoundStrategy(record=record, graph=graph, cluster=cluster, strategy=strategy)
