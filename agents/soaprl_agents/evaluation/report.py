"""What an evaluation writes: a table in Markdown, plots, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from soaprl.atomic import make_folder, write_text_atomic
from soaprl_agents.evaluation.runs import PolicyLabel
from soaprl_agents.evaluation.statistics import Summary


def table(summary: Summary) -> list[list[str]]:
    """Rows of method, budget, score with its interval, ratio, wins, speed-up and seconds."""
    return [
        [
            cell.method,
            f"{cell.budget:,}",
            f"{cell.iqm:.3f} ({cell.low:.3f}-{cell.high:.3f})",
            _number(cell.ratio),
            "-" if cell.wins is None else f"{cell.wins:.0%}",
            "-" if cell.speed_up is None else f"{cell.speed_up:.3f}x",
            f"{cell.optimality_gap:.3f}",
            f"{cell.seconds:.2f}",
        ]
        for cell in summary.cells
    ]


def columns(summary: Summary) -> tuple[str, ...]:
    """Names of the columns of `table`."""
    reference = summary.reference
    return (
        "method",
        "evaluations",
        "score, IQM (95%)",
        f"time / {reference}",
        f"beats {reference}",
        "speed-up",
        "optimality gap",
        "found after s",
    )


def headline(suite: str, summary: Summary) -> str:
    """What was evaluated, in a line: problems, policies with their training seeds, search seeds."""
    parts = [f"{suite}: {_counted(len(summary.problems), 'problem')}"]
    if summary.policies:
        parts.append(counted_policies(summary.policies))
    parts.append(_counted(len(summary.seeds), "search seed"))
    return ", ".join(parts)


def counted_policies(known: Sequence[PolicyLabel]) -> str:
    """How many policies, their names and the seeds of their trainings."""
    names = ", ".join(dict.fromkeys(label.name for label in known))
    return f"{_counted(len(known), 'policy', 'policies')} ({names}; {_trained(known)})"


def _trained(known: Sequence[PolicyLabel]) -> str:
    """The seeds of trainings, and the sizes of ensembles."""
    single = [_seed(label) for label in known if label.members == 1]
    parts = [f"ensemble of {label.members}" for label in known if label.members > 1]
    if single:
        parts.insert(0, f"training {'seed' if len(single) == 1 else 'seeds'} {', '.join(single)}")
    return ", ".join(parts)


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def markdown(suite: str, summary: Summary) -> str:
    """The tables in Markdown."""
    text = f"{headline(suite, summary)}.\n\n{_lines(columns(summary), table(summary))}"
    if len(summary.policies) > 1:
        heads = [f"{_trained([label])} ({label.digest})" for label in summary.policies]
        text += "\nScore of each policy by itself, IQM:\n\n"
        text += _lines(("method", "evaluations", *heads), by_policy(summary))
    return text


def by_policy(summary: Summary) -> list[list[str]]:
    """Rows of method, budget and the score of each policy, of methods that use one."""
    return [
        [cell.method, f"{cell.budget:,}", *(f"{iqm:.3f}" for iqm in cell.iqm_by_policy)]
        for cell in summary.cells
        if cell.iqm_by_policy
    ]


def _seed(label: PolicyLabel) -> str:
    return "unknown" if label.seed is None else str(label.seed)


def _lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def write_report(folder: Path, suite: str, summary: Summary) -> None:
    """Write `summary.json`, `summary.md`, `anytime.png` and `profiles.png` of a suite into `folder`.

    Raises:
        OutputError: A file cannot be written.
    """
    make_folder(folder)
    write_text_atomic(
        folder / "summary.json", json.dumps(summary.as_json(), indent=1, allow_nan=False) + "\n"
    )
    write_text_atomic(folder / "summary.md", markdown(suite, summary))
    matplotlib.use("agg", force=False)
    _anytime(summary).savefig(folder / "anytime.png", dpi=120)
    _profiles(summary).savefig(folder / "profiles.png", dpi=120)


def _anytime(summary: Summary) -> Figure:
    """Score over evaluations, and over seconds of search."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for method in dict.fromkeys(cell.method for cell in summary.cells):
        cells = [cell for cell in summary.cells if cell.method == method]
        low, high = [cell.low for cell in cells], [cell.high for cell in cells]
        scores = [cell.iqm for cell in cells]
        budgets = [cell.budget for cell in cells]
        left.plot(budgets, scores, marker="o", label=method)
        left.fill_between(budgets, low, high, alpha=0.15)
        right.plot([max(cell.seconds, 1e-4) for cell in cells], scores, marker="o", label=method)
    for axes, name in ((left, "evaluations"), (right, "seconds of search, inference included")):
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    left.set_ylabel("best time known / time, interquartile mean")
    handles, labels = left.get_legend_handles_labels()
    # In the axes it would hide a method that is good from its first evaluation on.
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return figure


def _profiles(summary: Summary) -> Figure:
    """Share of runs with at least a score."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, shares in summary.profiles.items():
        axes.plot(np.array(summary.profile_at), np.array(shares), label=method)
    axes.set_xlabel("score: best time known / time")
    axes.set_ylabel("share of runs with at least this score")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
