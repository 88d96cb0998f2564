"""What `soaprl validate` does: chooses strategies, runs and simulates them, and writes what came of it."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from soaprl.atomic import check_writable, make_folder
from soaprl.cli.comparing import chosen_methods
from soaprl.cli.inputs import Execution, ModelChoice, Prepared, prepare
from soaprl.cli.output import progress_bar, say
from soaprl.cli.searching import ready_simulator
from soaprl.cli.validation_choices import Chosen, choose, predicted
from soaprl.cluster.files import load_cluster
from soaprl.errors import ExecutionError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.zoo import Option, zoo_models
from soaprl.report.validation import Agreement, Point, agreement, percentile
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.result import simulate
from soaprl.strategy.strategy import Strategy

if TYPE_CHECKING:
    from soaprl.runtime.launch_job import Job
    from soaprl.runtime.measuring.calibration import Load
    from soaprl.runtime.measuring.runs import Run

# Of the files of runs.
_FORMAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to validate; the options of the command line."""

    models: tuple[str, ...]
    cluster: str
    execution: Execution
    options: Mapping[str, Option] = field(default_factory=dict)
    methods: str
    num_strategies: int
    repeats: int
    num_steps: int
    num_worst: int
    budget_evaluations: int
    folder: Path
    seed: int
    calibrated: Path | None = None
    prefix: str = ""
    compared: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What came of it."""

    plan: Plan
    cost_model: str
    points: tuple[Point, ...]
    agreements: tuple[Agreement, ...]
    compared: tuple[Agreement, ...]
    loads: "tuple[Load, ...]"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "cluster": self.plan.cluster,
            "cost_model": self.cost_model,
            "models": [found.as_json() for found in self.agreements],
            "compared": [found.as_json() for found in self.compared],
            "points": [
                {
                    "model": point.model,
                    "found_by": point.found_by,
                    "predicted_s": point.predicted_s,
                    "repeats_s": list(point.repeats_s),
                    "predicted_busy_s": list(point.predicted_busy_s),
                    "ran_s": list(point.ran_s),
                    "stolen": point.stolen,
                }
                for point in self.points
            ],
        }


def run_validation(plan: Plan) -> Validation:
    """Runs and simulates.

    Raises:
        SoaprlError: A model, the cluster or a method is wrong; a process fails; the folder cannot be written.
    """
    make_folder(plan.folder)
    if plan.calibrated is not None:
        check_writable(plan.calibrated)
    names = [method.name for method in chosen_methods(plan.methods)]
    points: list[Point] = []
    agreements, compared, cost_model = [], list[Agreement](), ""
    loads: list[Load] = []
    for word in plan.models:
        prepared = prepare(_choice(word, plan.options), plan.cluster, plan.execution)
        cost_model = prepared.problem.cost.name
        simulator = ready_simulator(prepared.problem)
        chosen = choose(
            prepared,
            simulator,
            names,
            num_strategies=plan.num_strategies,
            budget_evaluations=plan.budget_evaluations,
            seed=plan.seed,
        )
        found = _measured(prepared, chosen, plan)
        points += found
        if plan.calibrated is not None:
            loads += _loads(prepared, chosen, found)
        agreements.append(agreement(found[0].model, found))
        if plan.compared is not None:
            others = _predicted_otherwise(prepared, chosen, found, plan.compared)
            compared.append(agreement(found[0].model, others))
        _write_worst(prepared, simulator, chosen, found, plan)
    return Validation(
        plan=plan,
        cost_model=cost_model,
        points=tuple(points),
        agreements=tuple(agreements),
        compared=tuple(compared),
        loads=tuple(loads),
    )


def _predicted_otherwise(
    prepared: Prepared, chosen: Sequence[Chosen], points: Sequence[Point], cluster: str
) -> list[Point]:
    """The points with what is predicted for another cluster."""
    problem = replace(prepared.problem, cluster=load_cluster(cluster))
    simulator = Simulator(problem)
    found = []
    for c, point in zip(chosen, points, strict=True):
        predicted_s, busy_s = predicted(problem, c.strategy, simulator)
        found.append(replace(point, predicted_s=predicted_s, predicted_busy_s=busy_s))
    return found


def _loads(prepared: Prepared, chosen: Sequence[Chosen], points: Sequence[Point]) -> "Iterator[Load]":
    """What each rank did under each strategy, for the calibration."""
    from soaprl.runtime.measuring.calibration import loads

    return loads(prepared.problem, (c.strategy for c in chosen), (point.ran_s for point in points))


def _choice(word: str, options: Mapping[str, Option]) -> ModelChoice:
    """The model that a word names, with a batch after a colon, and the options that it knows."""
    name, _, batch = word.rpartition(":")
    if not (name and batch.isdigit()):
        name, batch = word, ""
    known = zoo_models()[name].options if name in zoo_models() else {}
    own = {key: value for key, value in options.items() if key in known}
    return ModelChoice(name=name, options=own, batch_size=int(batch) if batch else None)


def _job(prepared: Prepared, plan: Plan, strategy: Strategy) -> "Job":
    from soaprl.runtime.launch_job import LEARNING_RATES, Job

    problem, optimizer = prepared.problem, prepared.problem.options.optimizer
    return Job(
        model=prepared.choice.name,
        options=dict(prepared.choice.options),
        batch_size=problem.graph.batch_size,
        strategy=strategy,
        num_ranks=problem.cluster.num_devices,
        optimizer=optimizer,
        learning_rate=LEARNING_RATES[optimizer],
        seed=plan.seed,
        num_steps=plan.num_steps,
        trace=True,
    )


def _measured(prepared: Prepared, chosen: Sequence[Chosen], plan: Plan) -> list[Point]:
    from soaprl.runtime.measuring.runs import run_strategies

    graph = prepared.problem.graph
    job = _job(prepared, plan, chosen[0].strategy)
    # Runs of other models, batches or steps, over other links, or written down otherwise, must not be taken
    # for these; those of other strategies are told apart in the file.
    made_by = (_FORMAT, graph_fingerprint(graph), replace(job, strategy=Strategy(())), plan.prefix)
    content = repr(made_by).encode()
    name = f"{_file_name(graph.name)}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    with _shown(graph.name) as listen:
        runs = run_strategies(
            job,
            graph,
            [c.strategy for c in chosen],
            plan.folder / name,
            repeats=plan.repeats,
            listen=listen,
            prefix=plan.prefix,
        )
    by_strategy: dict[str, list[Run]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    found = [(c, by_strategy[c.strategy.fingerprint]) for c in chosen]
    return [
        Point(
            model=Path(graph.name).name,
            found_by=c.found_by,
            predicted_s=c.predicted_s,
            repeats_s=tuple(_undisturbed(run.times_s) for run in own),
            predicted_busy_s=c.busy_s,
            ran_s=tuple(median(of_rank) for of_rank in zip(*map(_ran, own), strict=True)),
            stolen=median(run.stolen for run in own),
        )
        for c, own in found
    ]


def _undisturbed(times_s: Sequence[float]) -> float:
    """The lower quartile of a run's iterations: what else a machine does only ever makes them longer."""
    return percentile(sorted(times_s), 0.25)


def _ran(run: "Run") -> tuple[float, ...]:
    """What the threads of each rank ran: those of libraries count where no other processors run them."""
    if len(run.busy_s) < (os.cpu_count() or 1):
        return run.busy_s
    return tuple(own + helped for own, helped in zip(run.busy_s, run.helped_s, strict=True))


@contextmanager
def _shown(model: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bar() as display:
        bar = display.add_task(f"running {model}", total=None, status="")

        def listen(done: int, total: int) -> None:
            display.update(bar, completed=done, total=total, status=f"{done} of {total} runs")

        yield listen


def _write_worst(
    prepared: Prepared,
    simulator: Simulator,
    chosen: Sequence[Chosen],
    points: Sequence[Point],
    plan: Plan,
) -> None:
    """Timelines, as predicted and as they run, of the strategies that are predicted worst."""
    from soaprl.cli.run_report import write_timelines
    from soaprl.runtime.launch import run_job

    if plan.prefix and plan.num_worst:
        say("soaprl: no timelines: they are recorded over this machine's own links, without --prefix.")
        return
    order = sorted(range(len(points)), key=lambda number: -abs(points[number].error))
    for place, number in enumerate(order[: plan.num_worst], start=1):
        path = plan.folder / f"worst-{_file_name(points[number].model)}-{place}.json"
        try:
            result = run_job(
                _job(prepared, plan, chosen[number].strategy), prepared.problem.graph, lambda progress: None
            )
        except ExecutionError as error:
            say(f"soaprl: no timeline for {path}: {error}")
            continue
        write_timelines(
            simulate(prepared.problem, chosen[number].strategy, simulator=simulator), result, path
        )
        point = points[number]
        say(f"soaprl: wrote {path}: {point.found_by}, predicted {point.error:+.0%}")


def _file_name(model: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in Path(model).name)
