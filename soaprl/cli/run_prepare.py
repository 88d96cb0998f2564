"""What `soaprl run` does: model, cluster and strategy from words; the program shown, or run and reported."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from soaprl.atomic import check_writable
from soaprl.cli.inputs import GRAPH_SUFFIXES, Execution, ModelChoice, Prepared, load_model, make_problem
from soaprl.cli.output import say
from soaprl.cli.records import choice_of
from soaprl.cli.simulating import Chosen, Simulated, choose_strategy, simulate_chosen
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import cluster_from_dict, load_cluster
from soaprl.errors import ExecutionError, SoaprlError, StrategyError, unknown_name
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.strategy.files import FORMAT, StrategyRecord

if TYPE_CHECKING:
    from soaprl.runtime.launch import Elastic
    from soaprl.runtime.launch_job import Job
    from soaprl.runtime.program import Program

DEFAULT_STRATEGY = "data-parallel"
DEFAULT_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of the command line; None is what follows from the others."""

    strategy: str | None
    cluster: str | None
    num_processes: int | None
    optimizer: str | None
    learning_rate: float | None
    batch_norm: str
    dtype: str
    executor: str
    backend: str
    device: str
    timeout_s: float
    output: Path | None
    save_every: int
    resume: bool
    trace: Path | None
    check: bool
    num_steps: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A run that is compiled and checked.

    Attributes:
        job: What to train, and how.
        graph: The captured model.
        program: What each rank does.
        prepared: The problem that was simulated.
        simulated: What the simulator predicts.
        place: This process's place in a `torchrun`.
    """

    job: "Job"
    graph: OperatorGraph
    program: "Program"
    prepared: Prepared
    simulated: Simulated
    place: "Elastic | None"

    @property
    def speaks(self) -> bool:
        """Whether this process prints the results."""
        return self.place is None or self.place.rank == 0


def prepare_run(choice: ModelChoice, wishes: Wishes) -> PreparedRun:
    """Everything that can go wrong before processes start.

    Raises:
        SoaprlError: The model, cluster, strategy or options do not fit.
    """
    from soaprl.runtime.launch import elastic

    _check_words(wishes)
    if wishes.trace is not None:
        check_writable(wishes.trace)
    place = elastic(os.environ)
    named = _strategy_named_as_model(choice, wishes)
    chosen = named or choose_strategy(wishes.strategy or DEFAULT_STRATEGY)
    if named is not None and named.record is not None:
        own = choice_of(named.record)
        choice = replace(
            own, options={**own.options, **choice.options}, batch_size=choice.batch_size or own.batch_size
        )
    choice = chosen.applied(choice)
    if choice.name.endswith(GRAPH_SUFFIXES):
        raise ExecutionError(
            f"{choice.name} is a saved graph, which can be simulated, but has no weights to train: name the"
            " model of the zoo or path/file.py:factory that it was captured from"
        )
    cluster = _cluster(wishes, chosen, place)
    graph = load_model(choice, cluster.num_devices)
    if place is None or place.rank == 0:
        for note in graph.notes:
            say(f"soaprl: {note}")
    execution = Execution(optimizer=wishes.optimizer)
    prepared = Prepared(choice=choice, problem=make_problem(graph, cluster, execution))
    simulated = simulate_chosen(prepared, chosen)
    return _compiled(prepared, simulated, wishes, place)


def _compiled(
    prepared: Prepared, simulated: Simulated, wishes: Wishes, place: "Elastic | None"
) -> PreparedRun:
    from soaprl.runtime import CompileOptions, check_program, compile_program
    from soaprl.runtime.launch_job import LEARNING_RATES, Job

    problem, choice = prepared.problem, prepared.choice
    bound = simulated.record.bind(
        problem.graph, problem.cluster, fingerprint=graph_fingerprint(problem.graph)
    )
    graph = _graph_to_run(prepared, wishes)
    optimizer = problem.options.optimizer
    rate = LEARNING_RATES[optimizer] if wishes.learning_rate is None else wishes.learning_rate
    job = Job(
        model=choice.name,
        options=dict(choice.options),
        batch_size=graph.batch_size,
        configs=bound.configs,
        num_ranks=problem.cluster.num_devices,
        optimizer=optimizer,
        learning_rate=rate,
        batch_norm="synchronized" if wishes.batch_norm == "synchronized" else "local",
        dtype="float64" if wishes.dtype == "float64" else "float32",
        seed=wishes.seed,
        num_steps=wishes.num_steps,
        check=wishes.check,
        executor="logical" if wishes.executor == "logical" else "distributed",
        backend=wishes.backend,
        device=wishes.device,
        timeout_s=wishes.timeout_s,
        output=None if wishes.output is None else str(wishes.output),
        save_every=wishes.save_every,
        # What torchrun starts again goes on, whatever the command line said at first.
        resume=wishes.resume or (place is not None and place.num_restarts > 0),
        trace=wishes.trace is not None,
    )
    options = CompileOptions(batch_norm=job.batch_norm)
    fingerprint = graph_fingerprint(graph)
    program = compile_program(graph, bound, num_ranks=job.num_ranks, options=options, fingerprint=fingerprint)
    check_program(program, graph, fingerprint=fingerprint)
    return PreparedRun(
        job=job, graph=graph, program=program, prepared=prepared, simulated=simulated, place=place
    )


def _graph_to_run(prepared: Prepared, wishes: Wishes) -> OperatorGraph:
    """The graph of the strategy, or the same operators in another type."""
    from soaprl.runtime.launch_job import default_dtype

    graph = prepared.problem.graph
    if wishes.dtype == "float32":
        return graph
    with default_dtype("float64"):
        found = load_model(prepared.choice, prepared.problem.cluster.num_devices)
    if found.index.keys() != graph.index.keys():
        raise StrategyError(
            f"{graph.name!r} has other operators in float64 than in float32: leave out --dtype float64"
        )
    return found


def _check_words(wishes: Wishes) -> None:
    """Raises the error of the first option that is none of what it can be."""
    from soaprl.runtime.launch_job import BACKENDS, DEVICES, DTYPES, EXECUTORS

    known = {
        "executor": (wishes.executor, EXECUTORS),
        "backend": (wishes.backend, BACKENDS),
        "device": (wishes.device, DEVICES),
        "dtype": (wishes.dtype, DTYPES),
        "batch normalization": (wishes.batch_norm, ("local", "synchronized")),
    }
    for what, (word, words) in known.items():
        if word not in words:
            raise unknown_name(what, word, words)
    if wishes.check and wishes.resume:
        raise ExecutionError(
            "--check compares from the first step, and --resume begins at a later one: leave one of them out"
        )
    if wishes.output is None and (wishes.resume or wishes.save_every):
        raise ExecutionError("--resume and --save-every need the folder of the checkpoints: add --output DIR")


def _strategy_named_as_model(choice: ModelChoice, wishes: Wishes) -> Chosen | None:
    """The strategy file that stands in the place of the model, which it names."""
    if not choice.name.endswith(".json"):
        return None
    try:
        content = json.loads(Path(choice.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if content is not None and not (isinstance(content, dict) and content.get("format") == FORMAT):
        return None
    chosen = choose_strategy(choice.name)
    if wishes.strategy is not None:
        raise SoaprlError(
            f"{choice.name} is a strategy already: leave out --strategy, or name the model in its place."
        )
    return chosen


def _cluster(wishes: Wishes, chosen: Chosen, place: "Elastic | None") -> Cluster:
    """One device a process: the cluster named, that of the strategy, or processes of this machine."""
    count = place.world_size if place is not None else wishes.num_processes
    if wishes.cluster is not None:
        cluster = load_cluster(wishes.cluster)
    elif chosen.record is not None:
        cluster = _own_cluster(chosen.record)
    else:
        cluster = load_cluster(f"cpu-1x{count or DEFAULT_PROCESSES}")
    if count is not None and count != cluster.num_devices:
        where = "torchrun started" if place is not None else "--num-processes asks for"
        raise ExecutionError(
            f"expected a process for each of the {cluster.num_devices} devices of {cluster.name}, and {where}"
            f" {count}: start {cluster.num_devices}, or choose a strategy and a cluster for {count}"
        )
    return cluster


def _own_cluster(record: StrategyRecord) -> Cluster:
    reference = record.cluster
    if reference.definition is None:
        return load_cluster(reference.name)
    return cluster_from_dict(reference.definition, where="the cluster in the strategy file")
