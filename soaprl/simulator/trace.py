"""A simulated iteration as a Chrome trace, which Perfetto and chrome://tracing show."""

import json
from pathlib import Path
from typing import Any

from soaprl.atomic import write_text_atomic
from soaprl.simulator.result import SimulationResult
from soaprl.simulator.timeline import TaskKind

_DEVICES, _LINKS = 0, 1
_MICROSECONDS = 1e6


def write_trace(result: SimulationResult, path: str | Path) -> None:
    """Writes `result` to `path`: a row for each device and for each link that is used.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    events = [*_metadata(result), *_computations(result), *_occupations(result)]
    content = {
        "displayTimeUnit": "ms",
        "otherData": {
            "model": result.problem.graph.name,
            "cluster": result.problem.cluster.name,
            "iteration_time_s": result.iteration_time_s,
        },
        "traceEvents": events,
    }
    write_text_atomic(path, json.dumps(content))


def _metadata(result: SimulationResult) -> list[dict[str, Any]]:
    """Names of the processes and rows."""
    cluster = result.problem.cluster
    events = [
        _name("process_name", _DEVICES, 0, f"devices of {cluster.name}"),
        _name("process_name", _LINKS, 0, f"links of {cluster.name}"),
    ]
    events += [_name("thread_name", _DEVICES, i, d.name) for i, d in enumerate(cluster.devices)]
    used = sorted(set(result.occupations.link.tolist()))
    return events + [_name("thread_name", _LINKS, i, cluster.links[i].name) for i in used]


def _name(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": {"name": name}}


def _computations(result: SimulationResult) -> list[dict[str, Any]]:
    tasks = result.tasks
    computes = (tasks.resource >= 0) & (tasks.resource < result.problem.cluster.num_devices)
    return [
        _event(result, task, _DEVICES, int(tasks.resource[task]), float(tasks.start_s[task]), None)
        for task in computes.nonzero()[0].tolist()
    ]


def _occupations(result: SimulationResult) -> list[dict[str, Any]]:
    used = result.occupations
    rows = zip(
        used.task.tolist(), used.link.tolist(), used.start_s.tolist(), used.busy_s.tolist(), strict=True
    )
    return [_event(result, task, _LINKS, link, start_s, busy_s) for task, link, start_s, busy_s in rows]


def _event(
    result: SimulationResult, task: int, process: int, row: int, start_s: float, busy_s: float | None
) -> dict[str, Any]:
    """One slice; `busy_s` where it differs from the task's own duration."""
    tasks = result.tasks
    duration_s = float(tasks.finish_s[task]) - start_s if busy_s is None else busy_s
    event = {
        "ph": "X",
        "name": tasks.name(task, result.graph),
        "cat": TaskKind(tasks.kind[task]).name.lower(),
        "pid": process,
        "tid": row,
        "ts": start_s * _MICROSECONDS,
        "dur": duration_s * _MICROSECONDS,
    }
    if process == _LINKS:
        event["args"] = {"bytes": int(tasks.num_bytes[task])}
    return event
