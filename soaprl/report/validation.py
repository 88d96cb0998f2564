"""How well predicted times agree with measured ones: errors, rank correlations, and a scatter plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from soaprl.errors import SimulationError
from soaprl.report.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How strategies that no method found were drawn: all operators, or a few operators of data parallelism.
RANDOM = ("random", "changed data-parallel")
COLUMNS = (
    "model",
    "strategies",
    "error, median",
    "error, 90 %",
    "bias",
    "compute error",
    "Spearman",
    "repeats'",
    "at best",
    "Kendall",
    "best found",
    "noise floor",
    "stolen",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One strategy.

    Attributes:
        model: The model's name.
        found_by: The method that chose it, or ``random``.
        predicted_s: Simulated seconds of an iteration.
        repeats_s: Measured seconds of an iteration, one for each repeat.
        predicted_busy_s: For each device, the seconds that it computes in the simulation.
        ran_s: For each rank, the seconds that its thread ran.
        stolen: Share of the processors' time that a hypervisor took meanwhile, median over the repeats.
    """

    model: str
    found_by: str
    predicted_s: float
    repeats_s: tuple[float, ...]
    predicted_busy_s: tuple[float, ...] = ()
    ran_s: tuple[float, ...] = ()
    stolen: float = 0.0

    @property
    def measured_s(self) -> float:
        """The median over the repeats."""
        return median(self.repeats_s)

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def compute_errors(self) -> list[float]:
        """For each rank that computes, predicted over run seconds of its thread, less one."""
        pairs = zip(self.predicted_busy_s, self.ran_s, strict=True)
        return [busy / ran - 1 for busy, ran in pairs if busy > 0 and ran > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How predictions for one model agree with what was measured.

    Attributes:
        model: The model's name.
        num_strategies: How many were run.
        median_error: Median of the absolute relative errors.
        error_90: Their 90th percentile.
        bias: Median of predicted over measured, less one.
        compute_error: Median of the absolute relative errors of what ranks compute, against what their
            threads ran: waiting and other programs are no part of it.
        spearman: Rank correlation.
        repeat_spearman: That of two halves of the repeats with each other; 1 for a single repeat.
        best_spearman: About the highest `spearman` that noise permits; see `at_best`.
        kendall: Share of pairs in the right order less that in the wrong one (tau-b, ties counted).
        regret: How much slower than the fastest measured strategy the one predicted to be fastest is.
        noise: Median relative difference between two halves of the repeats of one strategy: what even a
            perfect prediction could not be closer than.
        stolen: Share of the processors' time that a hypervisor took from a run, mean over strategies.
    """

    model: str
    num_strategies: int
    median_error: float
    error_90: float
    bias: float
    compute_error: float
    spearman: float
    repeat_spearman: float
    best_spearman: float
    kendall: float
    regret: float
    noise: float
    stolen: float

    @property
    def row(self) -> tuple[str, ...]:
        """For a table; see `COLUMNS`."""
        best = "yes" if self.regret <= self.noise else f"no, {self.regret:.1%} slower"
        return (
            self.model,
            str(self.num_strategies),
            f"{self.median_error:.1%}",
            f"{self.error_90:.1%}",
            f"{self.bias:+.1%}",
            f"{self.compute_error:.1%}",
            f"{self.spearman:.3f}",
            f"{self.repeat_spearman:.3f}",
            f"{self.best_spearman:.3f}",
            f"{self.kendall:.3f}",
            best,
            f"{self.noise:.1%}",
            f"{self.stolen:.1%}",
        )

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {field: getattr(self, field) for field in self.__slots__}


def agreement(model: str, points: Sequence[Point]) -> Agreement:
    """How the points of one model agree.

    Raises:
        SimulationError: There are fewer than two.
    """
    if len(points) < 2:
        raise SimulationError(f"expected at least two strategies of {model!r} that ran, found {len(points)}.")
    errors = sorted(abs(point.error) for point in points)
    predicted, measured = [p.predicted_s for p in points], [p.measured_s for p in points]
    computed = [abs(error) for point in points for error in point.compute_errors]
    chosen = min(points, key=lambda point: point.predicted_s)
    repeats = spearman(*zip(*(_halves(point.repeats_s) for point in points), strict=True))
    return Agreement(
        model=model,
        num_strategies=len(points),
        median_error=median(errors),
        error_90=percentile(errors, 0.9),
        bias=median(point.error for point in points),
        compute_error=median(computed) if computed else 0.0,
        spearman=spearman(predicted, measured),
        repeat_spearman=repeats,
        best_spearman=at_best(repeats),
        kendall=kendall(predicted, measured),
        regret=chosen.measured_s / min(measured) - 1,
        noise=median(_noise(point.repeats_s) for point in points),
        stolen=sum(point.stolen for point in points) / len(points),
    )


def _halves(repeats: Sequence[float]) -> tuple[float, float]:
    """The medians of every second repeat and of the others; of one repeat that twice."""
    return median(repeats[::2]), median(repeats[1::2] or repeats)


def at_best(halves: float) -> float:
    """The correlation of what was measured with what would be without noise: the best that is to be expected.

    Two halves of the repeats that correlate with r make a whole whose reliability is R = 2 r / (1 + r), which
    is the correlation with another such whole (Spearman 1910, Brown 1910). With what is the same in both it
    correlates with sqrt(R).

    Args:
        halves: r; what is below 0 counts as 0.
    """
    return sqrt(2 * max(halves, 0.0) / (1 + max(halves, 0.0)))


def _noise(repeats: Sequence[float]) -> float:
    """The relative difference of two halves of the repeats; 0 for one repeat."""
    first, second = _halves(repeats)
    return abs(first - second) / ((first + second) / 2)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of ascending numbers are, linear between them."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in ascending order, from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            found[place] = (start + end) / 2 + 1
        start = end + 1
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of the ranks (Spearman 1904); 0 where either are all equal."""
    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    norm = sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return product / norm if norm > 0 else 0.0


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b (1945): of all pairs, those in the same order less those in the opposite one."""
    agree = ties_first = ties_second = pairs = 0
    for i, j in combinations(range(len(first)), 2):
        a, b = _sign(first[i] - first[j]), _sign(second[i] - second[j])
        agree += a * b
        ties_first += a == 0
        ties_second += b == 0
        pairs += 1
    norm = sqrt((pairs - ties_first) * (pairs - ties_second))
    return agree / norm if norm > 0 else 0.0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def scatter(title: str, points: Sequence[Point]) -> "Figure":
    """Predicted against measured times on logarithmic axes; a good prediction is on the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    for model in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == model]
        measured = [point.measured_s * 1e3 for point in own]
        axes.scatter(measured, [point.predicted_s * 1e3 for point in own], s=14, alpha=0.7, label=model)
    every = [t * 1e3 for point in points for t in (point.measured_s, point.predicted_s)]
    ends = [min(every) / 1.2, max(every) * 1.2]
    axes.plot(ends, ends, color="black", linewidth=0.8, label="equal")
    for factor in (0.7, 1.3):
        axes.plot(ends, [factor * e for e in ends], color="black", linewidth=0.5, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=title)
    axes.set(xlim=ends, ylim=ends)
    axes.legend()
    return figure


def method_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """What methods found for each model, the fastest measured first; who is as fast within the noise."""
    found = sorted((p for p in points if p.found_by not in RANDOM), key=lambda p: (p.model, p.measured_s))
    fastest: dict[str, float] = {}
    for p in found:
        fastest.setdefault(p.model, p.measured_s)
    noise = {model: median(_noise(p.repeats_s) for p in points if p.model == model) for model in fastest}
    rows: list[tuple[str, ...]] = []
    for p in found:
        slower = p.measured_s / fastest[p.model] - 1
        within = ", within the noise" if slower <= noise[p.model] else ""
        against = f"{slower:+.1%}{within}" if slower > 0 else "fastest"
        rows.append(
            (p.model, p.found_by, format_seconds(p.measured_s), format_seconds(p.predicted_s), against)
        )
    return rows


def markdown(
    title: str,
    lines: Sequence[str],
    agreements: Sequence[Agreement],
    points: Sequence[Point],
    *,
    compared: Sequence[Agreement] = (),
    compared_with: str = "",
) -> str:
    """The agreement of all models, and every strategy, as Markdown tables.

    Args:
        title: The heading.
        lines: What was measured on, with which command.
        agreements: One for each model.
        points: All strategies.
        compared: The agreement with what is predicted for another cluster.
        compared_with: The name of that cluster.
    """
    columns = ("model", "found by", "measured", "predicted", "error")
    rows = [
        (p.model, p.found_by, format_seconds(p.measured_s), format_seconds(p.predicted_s), f"{p.error:+.1%}")
        for p in sorted(points, key=lambda p: (p.model, p.measured_s))
    ]
    parts = [f"# {title}", *lines, _table(COLUMNS, [a.row for a in agreements])]
    if compared:
        parts += [
            f"## The same runs, predicted for {compared_with}",
            _table(COLUMNS, [a.row for a in compared]),
        ]
    methods = method_rows(points)
    if methods:
        names = ("model", "method", "measured", "predicted", "against the fastest")
        parts += ["## What methods found", _table(names, methods)]
    return "\n\n".join([*parts, "## Every strategy", _table(columns, rows)]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_plot(figure: "Figure", path: Path) -> None:
    """Writes a figure in the format that its name says."""
    from soaprl.report.anytime import write_figure

    write_figure(figure, path)
