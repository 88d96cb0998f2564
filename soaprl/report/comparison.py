"""What a strategy achieves, and strategies set side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from soaprl.report.units import format_bytes, format_quantity, format_seconds

COLUMNS = ("method", "time", "speed-up", "samples/s", "peak memory", "traffic", "evaluations", "searched")
SPREAD_COLUMNS = (*COLUMNS[:2], "range over seeds", *COLUMNS[2:])


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

    @property
    def feasible_time_s(self) -> float:
        """The iteration time, infinite if the strategy does not fit."""
        return self.iteration_time_s if self.fits else inf

    def as_json(self) -> dict[str, Any]:
        """The attributes by name: the stable keys of every command's JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What one method found with several seeds.

    Attributes:
        outcomes: One for each seed, at least one.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.outcomes[0].method

    @property
    def ranked(self) -> tuple[Outcome, ...]:
        """The outcomes from best to worst: what fits by time, then what does not."""
        return tuple(sorted(self.outcomes, key=lambda o: (o.feasible_time_s, o.peak_memory_bytes)))

    @property
    def median(self) -> Outcome:
        """The outcome in the middle; of an even number, the worse of the two."""
        return self.ranked[len(self.outcomes) // 2]

    def as_json(self) -> dict[str, Any]:
        """Seconds of the median, best and worst seed (null: does not fit), and the number of seeds."""
        times = {"median": self.median, "best": self.ranked[0], "worst": self.ranked[-1]}
        return {
            "method": self.method,
            "num_seeds": len(self.outcomes),
            **{
                f"{name}_iteration_time_s": o.iteration_time_s if o.fits else None
                for name, o in times.items()
            },
        }


def spreads(outcomes: Sequence[Outcome]) -> tuple[Spread, ...]:
    """The outcomes by method, in the order in which methods first appear."""
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.method, []).append(outcome)
    return tuple(Spread(outcomes=tuple(found)) for found in by_method.values())


def comparison_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A row of text under `COLUMNS` for each outcome; speed-ups are relative to the first that fits.

    An outcome that does not fit is shown as such, without a speed-up: it is infeasible, never just slow.
    """
    reference = next((o.iteration_time_s for o in outcomes if o.fits), None)
    return [_row(outcome, reference) for outcome in outcomes]


def spread_rows(found: Sequence[Spread]) -> list[tuple[str, ...]]:
    """A row under `SPREAD_COLUMNS` for each method: its median seed, with the range of times beside it."""
    rows = comparison_rows([spread.median for spread in found])
    return [(*row[:2], _range(spread), *row[2:]) for row, spread in zip(rows, found, strict=True)]


def _range(spread: Spread) -> str:
    if len(spread.outcomes) == 1:
        return "-"
    best, worst = spread.ranked[0], spread.ranked[-1]
    ends = [format_seconds(o.iteration_time_s) if o.fits else "does not fit" for o in (best, worst)]
    return f"{' .. '.join(ends)} of {len(spread.outcomes)}"


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
