"""What a strategy achieves, and strategies set side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from soaprl.report.units import format_bytes, format_quantity, format_seconds

COLUMNS = ("method", "time", "speed-up", "samples/s", "peak memory", "traffic", "evaluations", "searched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one method's strategy achieves in one training iteration.

    Attributes:
        method: Who found the strategy, or the file it came from.
        iteration_time_s: Predicted time of one iteration.
        throughput_samples_per_s: Batch size over that time.
        peak_memory_bytes: Peak memory of the fullest device.
        communication_bytes: Bytes moved between devices.
        fits: Whether every device's peak memory is within its memory; a strategy that does not fit has a
            time, but cannot run.
        num_evaluations: Strategies simulated to find it.
        search_time_s: Seconds spent to find it.
    """

    method: str
    iteration_time_s: float
    throughput_samples_per_s: float
    peak_memory_bytes: int
    communication_bytes: int
    fits: bool
    num_evaluations: int
    search_time_s: float

    def as_json(self) -> dict[str, Any]:
        """The attributes by name: the stable keys of every command's JSON."""
        return asdict(self)


def comparison_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A row of text under `COLUMNS` for each outcome; speed-ups are relative to the first that fits.

    An outcome that does not fit is shown as such, without a speed-up: it is infeasible, never just slow.
    """
    reference = next((o.iteration_time_s for o in outcomes if o.fits), None)
    return [_row(outcome, reference) for outcome in outcomes]


def _row(outcome: Outcome, reference_s: float | None) -> tuple[str, ...]:
    memory = format_bytes(outcome.peak_memory_bytes)
    return (
        outcome.method,
        format_seconds(outcome.iteration_time_s),
        f"{reference_s / outcome.iteration_time_s:.2f}x" if outcome.fits and reference_s else "-",
        format_quantity(outcome.throughput_samples_per_s),
        memory if outcome.fits else f"{memory} (does not fit)",
        format_bytes(outcome.communication_bytes),
        str(outcome.num_evaluations),
        format_seconds(outcome.search_time_s),
    )
