"""The result of `soaprl run` as one JSON object."""

from statistics import median
from typing import TYPE_CHECKING, Any

from soaprl.cli.run_prepare import PreparedRun

if TYPE_CHECKING:
    from soaprl.runtime.launch_job import Check, Difference, RunResult


def measured_time_s(result: "RunResult") -> float:
    """The median over steps, without the first, in which much is made for the first time."""
    return median(result.times_s[1:] or result.times_s)


def result_json(run: PreparedRun, result: "RunResult") -> dict[str, Any]:
    """Times, losses and the comparison; the stable keys of every command, the time being the measured one."""
    job, outcome = run.job, run.simulated.outcome
    measured_s = measured_time_s(result)
    return {
        "iteration_time_s": measured_s,
        "throughput_samples_per_s": job.batch_size / measured_s,
        "predicted_iteration_time_s": outcome.iteration_time_s,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "communication_bytes": outcome.communication_bytes,
        "num_evaluations": outcome.num_evaluations,
        "search_time_s": outcome.search_time_s,
        "method": outcome.method,
        "executor": job.executor,
        "num_ranks": job.num_ranks,
        "first_step": result.first_step,
        "num_steps": job.num_steps,
        "losses": list(result.losses),
        "times_s": list(result.times_s),
        "check": None if result.check is None else _check_json(result.check),
        "checkpoint": result.checkpoint,
        "strategy": run.simulated.record.model_dump(mode="json"),
    }


def _check_json(check: "Check") -> dict[str, Any]:
    return {
        "agrees": check.agrees,
        "against": check.against,
        "tolerance": check.tolerance,
        "loss": _difference_json(check.loss),
        "gradients": [_difference_json(d) for d in check.gradients],
    }


def _difference_json(difference: "Difference") -> dict[str, Any]:
    fields = ("what", "step", "rank", "absolute", "relative")
    return {field: getattr(difference, field) for field in fields}
