"""What `soaprl simulate` does: find or load the strategy, simulate it in full, write what was asked for.

Above `FOLD_ABOVE` devices one of each class of replicas is simulated where the strategy allows it (see
`soaprl.simulator.folding`): the same numbers, sooner.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soaprl.atomic import check_writable
from soaprl.cli.inputs import GRAPH_SUFFIXES, Execution, ModelChoice, Prepared
from soaprl.cli.known import known_method, known_methods
from soaprl.cli.output import say, waiting
from soaprl.cli.records import make_record
from soaprl.cli.searching import make_budget, make_outcome, ready_simulator, run_method
from soaprl.errors import OutputError, unknown_name
from soaprl.graph.files import graph_fingerprint, save_graph
from soaprl.report.comparison import Outcome
from soaprl.report.devices import device_records
from soaprl.search.registry import search
from soaprl.search.task import SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.folding import FoldedResult, SymmetrySimulator, simulate_by_symmetry
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import SimulationResult, simulate
from soaprl.simulator.trace import write_trace
from soaprl.strategy.files import StrategyRecord, ZooModel, load_strategy
from soaprl.strategy.strategy import Sharding, Strategy

FOLD_ABOVE = 256
_FEW = "few devices for all; compiled once on a machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A strategy as named on the command line: the name, and the file's content if it is a file."""

    name: str
    record: StrategyRecord | None

    def applied(self, choice: ModelChoice) -> ModelChoice:
        """The chosen model, with what it leaves open as the strategy's file has it."""
        if self.record is None:
            return choice
        model = self.record.model
        options = model.options if isinstance(model, ZooModel) and model.name == choice.name else {}
        return replace(
            choice,
            batch_size=choice.batch_size or self.record.batch_size,
            coarsened=choice.coarsened and self.record.coarsened,
            options={**{k: v for k, v in options.items() if isinstance(v, int | float)}, **choice.options},
        )

    def executed(self, execution: Execution) -> Execution:
        """How it is costed, with what is not said as the strategy's file has it."""
        assumed = None if self.record is None else self.record.assumptions
        if assumed is None:
            return execution
        return Execution(
            optimizer=execution.optimizer or assumed.optimizer,
            compute_dtype=execution.compute_dtype or assumed.compute_dtype,
            compression=execution.compression or assumed.gradient_compression,
            paper=assumed.paper if execution.paper is None else execution.paper,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A simulated iteration, what it says of the strategy, and the content of the strategy's file."""

    result: SimulationResult | FoldedResult
    outcome: Outcome
    record: StrategyRecord

    @property
    def simulated(self) -> SimulationResult:
        """The simulation of the devices that were simulated: of all, or of those that stand for them."""
        return self.result.kept if isinstance(self.result, FoldedResult) else self.result

    def as_json(self) -> dict[str, Any]:
        """The stable keys, and what a full simulation knows besides."""
        return {
            **self.outcome.as_json(),
            "num_simulated_devices": self.simulated.problem.cluster.num_devices,
            "activation_bytes": self.result.activation_bytes,
            "gradient_bytes": self.result.gradient_bytes,
            "synchronization_bytes": self.result.synchronization_bytes,
            "devices": device_records(self.result),
            "critical_path": list(self.simulated.critical_path_names),
            "strategy": self.record.model_dump(mode="json"),
        }


def choose_strategy(word: str) -> Chosen:
    """The method or strategy file called `word`.

    Raises:
        UnknownNameError: It is neither a method nor looks like a file.
        StrategyError: The file is wrong.
    """
    if word in known_methods():
        return Chosen(name=word, record=None)
    if word.endswith(".json") or Path(word).exists():
        return Chosen(name=word, record=load_strategy(word))
    raise unknown_name("method or strategy file", word, known_methods())


def simulate_chosen(prepared: Prepared, chosen: Chosen, *, fold: bool | None = None) -> Simulated:
    """What the chosen strategy achieves; a method that searches gets the default budget.

    Args:
        prepared: The problem.
        chosen: The strategy, or the method that makes it.
        fold: Whether to let few devices stand for all where they can; None: on large clusters.

    Raises:
        StrategyError: The strategy does not fit the model or the cluster.
        SimulationError: The cluster is too large to simulate every device, and few cannot stand for all.
    """
    problem = prepared.problem
    folds = problem.cluster.num_devices > FOLD_ABOVE if fold is None else fold
    simulator = SymmetrySimulator(problem) if folds else ready_simulator(problem)
    num_evaluations, search_time_s = 1, 0.0
    if chosen.record is None:
        budget = make_budget(None, None)
        if isinstance(simulator, Simulator):
            found = run_method(simulator, known_method(chosen.name), budget, sharding=prepared.sharding)
        else:
            task = SearchTask(
                problem=problem,
                evaluator=simulator,
                budget=budget,
                clock=time.perf_counter,
                sharding=prepared.sharding or Sharding.NONE,
            )
            with waiting("simulating", _FEW):
                found = search(known_method(chosen.name), task)
        num_evaluations, search_time_s = found.num_evaluations, found.search_time_s
        strategy, record = found.strategy, make_record(prepared, found, budget)
    else:
        record = chosen.record
        if prepared.sharding is not None:
            record = record.model_copy(update={"sharding": prepared.sharding})
        if record.cluster.fingerprint != problem.cluster.fingerprint:
            say(f"soaprl: warning: {_other_cluster(chosen.name, record.cluster.name, problem.cluster.name)}")
        strategy = record.bind(problem.graph, problem.cluster, fingerprint=graph_fingerprint(problem.graph))
    result = _simulated(problem, strategy, simulator)
    outcome = make_outcome(
        chosen.name,
        result,
        problem.graph.batch_size,
        num_evaluations=num_evaluations,
        search_time_s=search_time_s,
    )
    return Simulated(result=result, outcome=outcome, record=record)


def _simulated(
    problem: Problem, strategy: Strategy, simulator: Simulator | SymmetrySimulator
) -> SimulationResult | FoldedResult:
    if isinstance(simulator, Simulator):
        with waiting("simulating", "one iteration, task by task"):
            return simulate(problem, strategy, simulator=simulator)
    with waiting("simulating", _FEW):
        result = simulate_by_symmetry(problem, strategy)
    if isinstance(result, FoldedResult):
        few, all_devices = result.kept.problem.cluster.num_devices, problem.cluster.num_devices
        say(f"soaprl: {few} devices were simulated for all {all_devices}: the others do the same")
    return result


def _other_cluster(strategy: str, found_for: str, simulated_on: str) -> str:
    if found_for == simulated_on:
        return (
            f"{strategy} was found for another cluster of the name {found_for}: devices or links have changed"
            " since, and another strategy may be better now"
        )
    return f"{strategy} was found for {found_for}, and another strategy may be better on {simulated_on}"


def check_files(trace: Path | None, graph: Path | None) -> None:
    """Raise `OutputError` for the first of the files that cannot be written; before the work, not after."""
    for path in (trace, graph):
        if path is not None:
            check_writable(path)
    if graph is not None and not graph.name.endswith(GRAPH_SUFFIXES):
        raise OutputError(
            f"cannot write {str(graph)!r}: expected a name that ends in .json or .json.gz, by which a saved"
            " graph is known when it is named as MODEL."
        )


def write_files(simulated: Simulated, trace: Path | None, graph: Path | None) -> None:
    """Write the timeline and the operator graph where files are named for them, and say so."""
    if trace is not None:
        write_trace(simulated.simulated, trace)
        say(f"soaprl: wrote {trace}; https://ui.perfetto.dev shows it")
    if graph is not None:
        save_graph(simulated.result.problem.graph, graph)
        say(f"soaprl: wrote {graph}, a MODEL that loads without torch")
