"""What the ranks of a run did, beside what was simulated, as one Chrome trace."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from soaprl.atomic import write_text_atomic
from soaprl.runtime.launch_job import Event

_MICROSECONDS = 1e6


def write_run_trace(
    path: str | Path, events: Sequence[Event], simulated: dict[str, Any], *, measured_s: float
) -> None:
    """Writes a row for each rank, above the rows of the simulated trace, all beginning at 0.

    Args:
        path: The file.
        events: What ranks did; a few iterations.
        simulated: The content of the file that `soaprl.simulator.trace.write_trace` writes.
        measured_s: Seconds an iteration took.

    Raises:
        OutputError: The file cannot be written.
    """
    origin_s = min((event.start_s for event in events), default=0.0)
    ranks = sorted({event.rank for event in events})
    rows: list[dict[str, Any]] = [_named("process_name", 0, 0, "ranks, as they ran")]
    rows += [_named("thread_name", 0, rank, f"rank {rank}") for rank in ranks]
    rows += [_slice(event, origin_s) for event in (*events, *waits(events))]
    rows += [{**event, "pid": event["pid"] + 1} for event in simulated["traceEvents"]]
    other = {**simulated["otherData"], "measured_iteration_time_s": measured_s}
    content = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": rows}
    write_text_atomic(path, json.dumps(content))


def waits(events: Sequence[Event]) -> Iterator[Event]:
    """The time that ranks spent before what other ranks sent was there; within an iteration."""
    last: dict[int, Event] = {}
    for event in sorted(events, key=lambda e: e.start_s):
        before = last.get(event.rank)
        last[event.rank] = event
        if before is None or before.step != event.step or not event.arrival:
            continue
        end_s = before.start_s + before.duration_s
        if event.start_s > end_s:
            duration_s = event.start_s - end_s
            yield replace(event, kind="wait", start_s=end_s, duration_s=duration_s, arrival=False)


def _named(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": {"name": name}}


def _slice(event: Event, origin_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": f"{event.kind} {event.name}".strip(),
        "cat": event.kind,
        "pid": 0,
        "tid": event.rank,
        "ts": (event.start_s - origin_s) * _MICROSECONDS,
        "dur": event.duration_s * _MICROSECONDS,
        "args": {"step": event.step},
    }
