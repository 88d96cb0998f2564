"""What `soaprl run` does: model, cluster and strategy from words; the program shown, or run and reported."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from soaprl.atomic import check_writable
from soaprl.cli.inputs import (
    GRAPH_SUFFIXES,
    Execution,
    ModelChoice,
    Prepared,
    load_model,
    prepared_problem,
)
from soaprl.cli.output import say, waiting
from soaprl.cli.records import choice_of
from soaprl.cli.run_wishes import Wishes, check_words, choose_cluster, strategy_named_as_model
from soaprl.cli.simulating import Simulated, choose_strategy, simulate_chosen
from soaprl.errors import ExecutionError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.strategy.files import Assumptions

if TYPE_CHECKING:
    from soaprl.runtime.launch import Elastic
    from soaprl.runtime.launch_job import Job
    from soaprl.runtime.program import Program

DEFAULT_STRATEGY = "data-parallel"


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

    check_words(wishes)
    if wishes.trace is not None:
        check_writable(wishes.trace)
    place = elastic(os.environ)
    named = strategy_named_as_model(choice, wishes)
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
    cluster = choose_cluster(wishes, chosen, place)
    with _shown(place, "capturing", choice.name):
        graph = load_model(choice, cluster.num_devices)
    if place is None or place.rank == 0:
        for note in graph.notes:
            say(f"soaprl: {note}")
    _check_trained(graph)
    execution = chosen.executed(
        Execution(
            optimizer=wishes.optimizer, compute_dtype=wishes.compute_dtype, compression=wishes.compression
        )
    )
    prepared = prepared_problem(choice, graph, cluster, execution, wishes.sharding)
    _check_formats(prepared.assumptions, check=wishes.check)
    simulated = simulate_chosen(prepared, chosen)
    return _compiled(prepared, simulated, wishes, place)


def _shown(place: "Elastic | None", what: str, status: str) -> AbstractContextManager[None]:
    """A display of what takes a while, by the first of several processes alone."""
    return waiting(what, status) if place is None or place.rank == 0 else nullcontext()


def _check_trained(graph: OperatorGraph) -> None:
    """Raise `ExecutionError` if there is nothing that an optimizer could update."""
    trained = (
        operator.has_backward and access.gradient and graph.tensors[access.tensor].requires_grad
        for operator in graph.operators
        for access in operator.parameters
    )
    if not any(trained):
        raise ExecutionError(
            f"expected a model to train, and the loss of {graph.name!r} has no gradient with respect to any"
            " parameter: look for requires_grad=False, .detach() and torch.no_grad()"
        )


def _check_formats(assumptions: Assumptions, *, check: bool) -> None:
    """Raise `ExecutionError` if the runtime has no such arithmetic, or a check could not agree."""
    found = assumptions.compute_dtype
    if found not in ("float32", "bfloat16"):
        raise ExecutionError(
            f"expected arithmetic in float32 or bfloat16, found {found}, which can be simulated but not run:"
            " add --precision fp32 or --precision bf16"
        )
    how = assumptions.gradient_compression
    if check and how in ("int8", "ternary"):
        raise ExecutionError(
            f"--check compares gradients, and {how} rounds them at random: leave --check out, or add"
            " --compress none, fp16 or bf16"
        )


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
        strategy=bound,
        num_ranks=problem.cluster.num_devices,
        optimizer=optimizer,
        learning_rate=rate,
        batch_norm="synchronized" if wishes.batch_norm == "synchronized" else "local",
        dtype="float64" if wishes.dtype == "float64" else "float32",
        precision="bfloat16" if prepared.assumptions.compute_dtype == "bfloat16" else "stored",
        compression=prepared.assumptions.gradient_compression,
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
    options = CompileOptions(batch_norm=job.batch_norm, precision=job.precision, compression=job.compression)
    fingerprint = graph_fingerprint(graph)
    with _shown(place, "compiling", f"the programs of {job.num_ranks} ranks"):
        program = compile_program(
            graph, bound, num_ranks=job.num_ranks, options=options, fingerprint=fingerprint
        )
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
