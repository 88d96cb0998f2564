"""What `soaprl validate` does: chooses strategies, runs and simulates them, and writes what came of it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.cli.comparing import chosen_methods
from soaprl.cli.inputs import Execution, ModelChoice, Prepared, prepare
from soaprl.cli.known import known_method
from soaprl.cli.output import print_json, print_table, progress_bar, say
from soaprl.cli.searching import make_budget, ready_simulator, run_method
from soaprl.errors import ExecutionError, SearchError, SoaprlError, StrategyError
from soaprl.graph.zoo import Option, zoo_models
from soaprl.report.validation import COLUMNS, Agreement, Point, agreement, markdown, scatter, write_plot
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy

if TYPE_CHECKING:
    from soaprl.runtime.launch_job import Job

# Random strategies are of these kinds in turn: all operators drawn, or a few operators of data parallelism.
_ALL, _FEW = "random", "changed data-parallel"
# How many are drawn for each that is wanted, at most: small models have few.
_DRAWS = 20


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A strategy to run, who found it, and what it is predicted to take."""

    found_by: str
    strategy: Strategy
    predicted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What came of it."""

    plan: Plan
    cost_model: str
    points: tuple[Point, ...]
    agreements: tuple[Agreement, ...]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "cluster": self.plan.cluster,
            "cost_model": self.cost_model,
            "models": [found.as_json() for found in self.agreements],
            "points": [
                {
                    "model": point.model,
                    "found_by": point.found_by,
                    "predicted_s": point.predicted_s,
                    "repeats_s": list(point.repeats_s),
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
    names = [method.name for method in chosen_methods(plan.methods)]
    points: list[Point] = []
    agreements, cost_model = [], ""
    for word in plan.models:
        prepared = prepare(_choice(word, plan.options), plan.cluster, plan.execution)
        cost_model = prepared.problem.cost.name
        simulator = ready_simulator(prepared.problem)
        chosen = choose(prepared, simulator, names, plan)
        found = _measured(prepared, chosen, plan)
        points += found
        agreements.append(agreement(prepared.problem.graph.name, found))
        _write_worst(prepared, simulator, chosen, found, plan)
    return Validation(plan=plan, cost_model=cost_model, points=tuple(points), agreements=tuple(agreements))


def _choice(word: str, options: Mapping[str, Option]) -> ModelChoice:
    """The model that a word names, with a batch after a colon, and the options that it knows."""
    name, _, batch = word.rpartition(":")
    if not (name and batch.isdigit()):
        name, batch = word, ""
    known = zoo_models()[name].options if name in zoo_models() else {}
    own = {key: value for key, value in options.items() if key in known}
    return ModelChoice(name=name, options=own, batch_size=int(batch) if batch else None)


def choose(prepared: Prepared, simulator: Simulator, names: Sequence[str], plan: Plan) -> list[Chosen]:
    """As many different strategies that can run as the plan says: those of methods first."""
    found: dict[Strategy, str] = {}
    for name in names:
        try:
            result = run_method(
                simulator, known_method(name), make_budget(plan.budget_evaluations, None), seed=plan.seed
            )
        except (SearchError, StrategyError) as error:
            say(f"soaprl: {name} is left out: {error}")
            continue
        if _runs(prepared, result.strategy):
            found.setdefault(result.strategy, name)
        else:
            say(f"soaprl: {name} is left out: the runtime cannot run what it found")
    for strategy, kind in islice(_random(prepared, plan.seed), _DRAWS * plan.num_strategies):
        if len(found) >= plan.num_strategies:
            break
        if strategy not in found and _runs(prepared, strategy):
            found[strategy] = kind
    return [
        Chosen(
            found_by=kind,
            strategy=strategy,
            predicted_s=float(simulator.evaluate(strategy).iteration_time_s),
        )
        for strategy, kind in list(found.items())[: plan.num_strategies]
    ]


def _random(prepared: Prepared, seed: int) -> Iterator[tuple[Strategy, str]]:
    """Random strategies without end."""
    problem = prepared.problem
    proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
    rng = np.random.default_rng(seed)
    base = data_parallel(problem.graph, problem.cluster)
    while True:
        yield proposals.strategy(rng), _ALL
        other, few = proposals.strategy(rng), base
        for operator in rng.choice(len(base.configs), rng.integers(1, len(base.configs) // 2 + 2)).tolist():
            few = few.replaced(operator, other.configs[operator])
        yield few, _FEW


def _runs(prepared: Prepared, strategy: Strategy) -> bool:
    """Whether the runtime has what the strategy needs."""
    from soaprl.runtime import compile_program

    try:
        compile_program(prepared.problem.graph, strategy, num_ranks=prepared.problem.cluster.num_devices)
    except SoaprlError:
        return False
    return True


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
    strategies = [c.strategy for c in chosen]
    # Runs of other strategies, batches or steps must not be taken for these.
    content = repr((job, strategies)).encode()
    name = f"{_file_name(graph.name)}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    with _shown(graph.name) as listen:
        runs = run_strategies(job, graph, strategies, plan.folder / name, repeats=plan.repeats, listen=listen)
    times: dict[int, list[float]] = {}
    for run in runs:
        times.setdefault(run.strategy, []).append(sorted(run.times_s)[len(run.times_s) // 2])
    return [
        Point(
            model=graph.name,
            found_by=c.found_by,
            predicted_s=c.predicted_s,
            repeats_s=tuple(times[number][: plan.repeats]),
        )
        for number, c in enumerate(chosen)
    ]


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
    from soaprl.simulator.result import simulate

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


def write_validation(validation: Validation) -> None:
    """Writes ``validation.json``, ``.md`` and ``.png`` into the plan's folder."""
    plan = validation.plan
    today = datetime.now(UTC).date().isoformat()
    title = f"Simulated and measured, {today}, {plan.cluster}"
    lines = [
        f"Costs: {validation.cost_model}.",
        f"{plan.repeats} interleaved runs of {plan.num_steps} iterations each; seed {plan.seed}.",
    ]
    text = json.dumps(validation.as_json(), indent=2, allow_nan=False)
    write_text_atomic(plan.folder / "validation.json", f"{text}\n")
    table = markdown(title, lines, validation.agreements, validation.points)
    write_text_atomic(plan.folder / "validation.md", table)
    write_plot(scatter(title, validation.points), plan.folder / "validation.png")


def print_validation(validation: Validation, *, as_json: bool) -> None:
    """Prints the agreement for each model."""
    if as_json:
        print_json(validation.as_json())
        return
    rows = [found.row for found in validation.agreements]
    print_table(f"Simulated and measured on {validation.plan.cluster}", COLUMNS, rows)
    say(f"soaprl: wrote validation.md, validation.png and validation.json to {validation.plan.folder}")
