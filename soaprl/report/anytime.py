"""Anytime curves: the best iteration time that each method had after so many evaluations, or so many seconds.

A method's curve is the median over its seeds at each point, with a band from the best to the worst seed. A
method that makes one strategy is a level, drawn dashed from where it was done. All curves end at the same
right edge: what is found is not lost when a search ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import OutputError
from soaprl.report.units import format_seconds

FORMATS = ("png", "svg", "pdf")
# The color-blind safe order of Okabe and Ito, with black for the first method, which is the reference.
_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Above this ratio of the worst to the best time, times are drawn on a logarithmic scale.
_LOGARITHMIC = 5.0
# Above this one, fewer ticks for each power of ten.
_DECADES = 50.0
# Margin above and below the times, as a share of them, at least.
_NARROWEST = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search: when its best strategy changed, and when it ended. Arrays have the shape [improvements].

    Attributes:
        evaluations: Evaluations after which a better strategy was there.
        seconds: Search time at that moment.
        best_s: Its iteration time.
        num_evaluations: Evaluations when it ended.
        search_time_s: Search time when it ended.
    """

    evaluations: NDArray[np.int64]
    seconds: NDArray[np.float64]
    best_s: NDArray[np.float64]
    num_evaluations: int
    search_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRuns:
    """The runs of one method, one for each seed; `iterative` methods have curves, the others levels."""

    method: str
    iterative: bool
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Best times over the seeds, from each position on until the next; infinite while some seed has nothing.

    Arrays have the shape [positions].
    """

    positions: NDArray[np.float64]
    median_s: NDArray[np.float64]
    best_s: NDArray[np.float64]
    worst_s: NDArray[np.float64]


def anytime_curve(steps: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Curve:
    """The curve of several seeds' steps, each (positions ascending, best times from there on).

    The median of an even number of seeds is the worse of the two in the middle, as in the table.
    """
    positions = np.unique(np.concatenate([at for at, _ in steps])) if steps else np.empty(0)
    values = np.full((len(steps), len(positions)), inf)
    for row, (at, best_s) in enumerate(steps):
        index = np.searchsorted(at, positions, side="right") - 1
        reached = index >= 0
        values[row, reached] = best_s[index[reached]]
    values.sort(axis=0)
    middle = len(steps) // 2
    return Curve(positions=positions, median_s=values[middle], best_s=values[0], worst_s=values[-1])


def anytime_figure(title: str, methods: Sequence[MethodRuns]) -> Figure:
    """Best time against evaluations, and beside it against seconds."""
    figure = Figure(figsize=(12.0, 5.0), dpi=120, layout="constrained")
    by_evaluations, by_seconds = figure.subplots(1, 2, sharey=True)
    drawn = [method for method in methods if any(len(run.best_s) for run in method.runs)]
    _draw(by_evaluations, drawn, seconds=False)
    _draw(by_seconds, drawn, seconds=True)
    by_evaluations.set_xlabel("strategies simulated")
    by_seconds.set_xlabel("search time (s)")
    by_evaluations.set_ylabel("best iteration time")
    _scale_times(by_evaluations, drawn)
    handles, labels = by_evaluations.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    num_seeds = max((len(method.runs) for method in drawn), default=1)
    seeds = f"; median and range of {num_seeds} seeds" if num_seeds > 1 else ""
    figure.suptitle(f"{title}{seeds}")
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, in the format that its suffix names.

    Raises:
        OutputError: The suffix is not one of `FORMATS`, or the file cannot be written.
    """
    check_format(path)
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    write_bytes_atomic(path, content.getvalue())


def check_format(path: Path) -> None:
    """Raise `OutputError` unless the suffix of `path` names a format that figures are written in."""
    if path.suffix[1:] not in FORMATS:
        names = ", ".join(f".{name}" for name in FORMATS)
        raise OutputError(f"cannot write {str(path)!r}: expected a plot's name to end in one of {names}.")


def _draw(axes: Axes, methods: Sequence[MethodRuns], *, seconds: bool) -> None:
    """Every method's curve over one of the two axes, as far as the longest goes."""
    curves = [
        anytime_curve(
            [((run.seconds if seconds else run.evaluations).astype(np.float64), run.best_s) for run in m.runs]
        )
        for m in methods
    ]
    ends = [float(run.search_time_s if seconds else run.num_evaluations) for m in methods for run in m.runs]
    begins = [float(curve.positions[0]) for curve in curves if len(curve.positions)]
    if not begins:
        return
    axes.set_xscale("log")
    right, left = 1.2 * max(ends), min(begins)
    for number, (method, curve) in enumerate(zip(methods, curves, strict=True)):
        known = np.isfinite(curve.median_s)
        at = np.append(curve.positions[known], right)
        median_s, best_s, worst_s = (
            np.append(values[known], values[known][-1:])
            for values in (curve.median_s, curve.best_s, curve.worst_s)
        )
        if len(at) < 2:
            continue
        style = _Style.of(number)
        line = "-" if method.iterative else "--"
        axes.step(
            at, median_s, line, where="post", color=style.color, label=method.method, linewidth=1.6, zorder=3
        )
        axes.plot(at[:1], median_s[:1], style.marker, color=style.color, markersize=5, zorder=4)
        if len(method.runs) > 1:
            axes.fill_between(at, best_s, worst_s, step="post", color=style.color, alpha=0.15, linewidth=0)
    axes.set_xlim(left / 1.2, right)
    axes.grid(visible=True, which="major", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@dataclass(frozen=True, slots=True)
class _Style:
    color: str
    marker: str

    @staticmethod
    def of(number: int) -> "_Style":
        """A color and a marker that no other of the first 56 methods has together."""
        return _Style(
            _COLORS[number % len(_COLORS)], _MARKERS[(number // len(_COLORS) + number) % len(_MARKERS)]
        )


def _scale_times(axes: Axes, methods: Sequence[MethodRuns]) -> None:
    """The scale of the times: logarithmic where they differ much, with units at the ticks.

    What searches came through on their way is cut off above the worst time that any method ended with.
    """
    runs = [run for method in methods for run in method.runs if len(run.best_s)]
    if not runs:
        return
    best_s = min(float(run.best_s[-1]) for run in runs)
    worst_s = max(float(run.best_s[-1]) for run in runs)
    ratio = worst_s / best_s
    if ratio > _LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio > _DECADES else (1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(best_s / ratio**0.08, worst_s * ratio**0.08)
    else:
        # No narrower than what three digits tell apart: a tie looks like one.
        margin_s = max(0.08 * (worst_s - best_s), _NARROWEST * worst_s)
        axes.set_ylim(best_s - margin_s, worst_s + margin_s)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value)))
