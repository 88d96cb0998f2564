"""Shows or runs what `soaprl run` has prepared, and reports what came of it."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from soaprl.cli.output import print_json, print_table, progress_bar, say
from soaprl.cli.run_json import measured_time_s, result_json
from soaprl.cli.run_prepare import PreparedRun
from soaprl.report.units import format_seconds
from soaprl.simulator.result import SimulationResult
from soaprl.simulator.trace import write_trace

if TYPE_CHECKING:
    from soaprl.runtime.launch_job import Check, Listen, Progress, RunResult

DISAGREES = 1
_SHOWN_GRADIENTS = 5


def show_program(run: PreparedRun, *, as_json: bool) -> None:
    """Prints what each rank would do."""
    from soaprl.runtime import program_text, totals_text

    if not run.speaks:
        return
    if as_json:
        ranks = [
            {
                "rank": rank.rank,
                "num_steps": len(rank.steps),
                "steps": [step.kind for step in rank.steps],
            }
            for rank in run.program.ranks
        ]
        content = {"checked": True, "totals": totals_text(run.program, run.graph), "ranks": ranks}
        print_json({**run.prepared.as_json(), **content})
        return
    print(program_text(run.program, run.graph), end="")
    print("checked: exchanges match, no rank waits for ever, every part is computed and reduced once")


def execute(run: PreparedRun, *, trace: Path | None, as_json: bool) -> None:
    """Runs, and prints times, losses, and how they compare; the exit code is 1 if they do not agree.

    Raises:
        ExecutionError: A rank failed.
    """
    from soaprl.runtime.launch import advice, run_job

    try:
        with _shown_progress(run) as listen:
            result = run_job(run.job, run.graph, listen, place=run.place)
    except KeyboardInterrupt:
        say(f"soaprl: all processes were ended{advice(run.job)}")
        raise
    if not run.speaks:
        return
    if trace is not None:
        write_timelines(run.simulated.simulated, result, trace)
        say(f"soaprl: wrote {trace}; https://ui.perfetto.dev shows it")
    if as_json:
        print_json({**run.prepared.as_json(), **result_json(run, result)})
    else:
        _print_result(run, result)
    if result.check is not None and not result.check.agrees:
        say(_disagreement(run, result.check))
        raise typer.Exit(DISAGREES)


@contextmanager
def _shown_progress(run: PreparedRun) -> "Iterator[Listen]":
    with progress_bar() as display:
        bar = display.add_task("training", total=run.job.num_steps, status="starting")

        def listen(progress: "Progress") -> None:
            status = f"loss {progress.loss:.6g}, {format_seconds(progress.time_s)} a step"
            display.update(bar, completed=progress.step, status=status)

        yield listen


def _print_result(run: PreparedRun, result: "RunResult") -> None:
    job, outcome = run.job, run.simulated.outcome
    measured_s = measured_time_s(result)
    rows = [
        ("strategy", outcome.method),
        ("ranks", f"{job.num_ranks} ({_how(run)})"),
        ("steps", f"{result.first_step + 1} to {job.num_steps}"),
        ("time a step, measured", format_seconds(measured_s)),
        (f"time a step, predicted for {run.prepared.problem.cluster.name}", _predicted(run)),
        ("loss, first and last", f"{result.losses[0]:.8g}, {result.losses[-1]:.8g}"),
    ]
    if result.checkpoint is not None:
        rows.append(("checkpoint", result.checkpoint))
    print_table(run.prepared.title, ("", ""), rows)
    if result.check is not None:
        _print_check(result.check)


def _how(run: PreparedRun) -> str:
    job = run.job
    if job.executor == "logical" and run.place is None:
        return f"one process, on {job.device}"
    return f"a process each, {job.backend}, on {job.device}"


def _predicted(run: PreparedRun) -> str:
    return format_seconds(run.simulated.outcome.iteration_time_s)


def _print_check(check: "Check") -> None:
    shown = [check.loss, *check.gradients[:_SHOWN_GRADIENTS]]
    columns = ("largest differences", "absolute", "relative", "step", "rank")
    rows = [
        (
            d.what if d is check.loss else f"gradient of {d.what}",
            f"{d.absolute:.3g}",
            f"{d.relative:.3g}",
            str(d.step),
            str(d.rank),
        )
        for d in shown
    ]
    verdict = "agrees with" if check.agrees else "DIFFERS from"
    title = f"Check: {verdict} {check.against} in one process (tolerance {check.tolerance:g})"
    print_table(title, columns, rows)


def _disagreement(run: PreparedRun, check: "Check") -> str:
    from soaprl.runtime.statistics import normalizations

    worst = max((check.loss, *check.gradients), key=lambda d: d.relative)
    text = f"soaprl: check: {worst.what} differs by {worst.relative:.3g} at step {worst.step}"
    if run.job.batch_norm == "local" and any(normalizations(op) for op in run.graph.operators):
        text += "; batch normalization takes its statistics from each task: try --batch-norm synchronized"
    elif run.job.dtype == "float32":
        text += "; --dtype float64 tells rounding from faults"
    return text


def write_timelines(simulated: SimulationResult, result: "RunResult", path: Path) -> None:
    """Writes what ranks did beside what was simulated, as one trace.

    Raises:
        OutputError: The file cannot be written.
    """
    from soaprl.runtime.launch_trace import write_run_trace

    with tempfile.TemporaryDirectory(prefix="soaprl-trace-") as folder:
        alone = Path(folder) / "simulated.json"
        write_trace(simulated, alone)
        content = json.loads(alone.read_text(encoding="utf-8"))
    write_run_trace(path, result.events, content, measured_s=measured_time_s(result))
