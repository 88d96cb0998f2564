"""Statistics of an evaluation.

As Agarwal et al. recommend (Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021). The
*score* of a run at a budget is (best time known for the problem) / (its best time): 1 is as good as anything
that any method found, 0 nothing that fits in memory. Aggregates are interquartile means over problems and
runs with 95% intervals from a bootstrap stratified by problem (rliable).

The *runs* of a method are its search seeds; those of a method that uses a policy are all pairs of a policy
and a search seed. The bootstrap pools them: a repetition draws, for each problem by itself and with
replacement, as many runs as the method has. So an interval says what other searches with policies like these
would give; of what another training would change it only knows what these few policies show, wherefore
`Cell.iqm_by_policy` has each by itself.

`ratio` is the geometric mean of (the method's time / that of the reference method with the same search seed,
the same policy if it uses one, and the same budget) over those where both found something that fits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics

from soaprl_agents.evaluation.records import Record
from soaprl_agents.evaluation.runs import DEPENDS_ON_BUDGET, Entry, EvaluationPlan, PolicyLabel

FloatArray = NDArray[np.float64]

_REPETITIONS = 2_000
_PROFILE_AT = np.linspace(0.5, 1.0, 51)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A method at a budget.

    Attributes:
        method: The method.
        budget: Evaluations.
        iqm: Interquartile mean of the scores.
        low: Lower end of its 95% interval.
        high: Upper end.
        optimality_gap: Mean of what the scores lack of 1.
        ratio: Geometric mean of its time over the reference's; None where nothing compares.
        wins: Probability that it is faster than the reference on a problem, ties counting half.
        speed_up: Geometric mean of its speed-up over data parallelism, where both fit.
        seconds: Mean search time after which its best strategy up to the budget was found.
        iqm_by_policy: Interquartile mean for each policy, in the order of `Summary.policies`; empty for a
            method that uses none.
    """

    method: str
    budget: int
    iqm: float
    low: float
    high: float
    optimality_gap: float
    ratio: float | None
    wins: float | None
    speed_up: float | None
    seconds: float
    iqm_by_policy: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All methods at all budgets.

    Attributes:
        reference: The method that `Cell.ratio` compares with.
        cells: By method, then by budget.
        profiles: For each method the share of runs with at least each of the scores `profile_at`, at the
            largest budget.
        profile_at: Scores.
        problems: The problems.
        seeds: The seeds of searches.
        policies: The policies.
    """

    reference: str
    cells: tuple[Cell, ...]
    profiles: dict[str, list[float]]
    profile_at: list[float]
    problems: tuple[str, ...]
    seeds: tuple[int, ...]
    policies: tuple[PolicyLabel, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        names = Cell.__dataclass_fields__
        return {
            "reference": self.reference,
            "problems": list(self.problems),
            "seeds": list(self.seeds),
            "policies": [label._asdict() for label in self.policies],
            "cells": [{name: getattr(cell, name) for name in names} for cell in self.cells],
            "profiles": self.profiles,
            "profile_at": self.profile_at,
        }


class Times:
    """Best times by method and budget; infinite where nothing fitted."""

    def __init__(self, plan: EvaluationPlan, records: Sequence[Record]) -> None:
        self.plan = plan
        self._known = {(r.problem, r.method, r.policy, r.seed, r.budget): r for r in records}
        names = plan.problems.names
        best = [min(min(r.best_s, default=inf) for r in records if r.problem == name) for name in names]
        self.best = np.array(best)

    def applies(self, method: str) -> bool:
        """Whether a method ran on any problem."""
        return any(r.method == method and not r.skipped for r in self._known.values())

    def uses_policy(self, method: str) -> bool:
        """Whether a method runs once for each policy."""
        return self._entries(method)[0].policy is not None

    def at(self, method: str, budget: int) -> FloatArray:
        """Best times after `budget` evaluations, shape [runs, problems]: policy by policy, seed by seed."""
        return np.concatenate([self._table(entry, budget, Record.best_at) for entry in self._entries(method)])

    def beside(self, method: str, budget: int) -> FloatArray:
        """Like `at`, for all policies of the plan: what uses none is repeated, so that tables compare."""
        repeated = 1 if self.uses_policy(method) else max(1, len(self.plan.policies))
        return np.tile(self.at(method, budget), (repeated, 1))

    def seconds(self, method: str, budget: int) -> float:
        """Mean search time after which the best strategy up to `budget` evaluations was found."""
        tables = [self._table(entry, budget, Record.found_at) for entry in self._entries(method)]
        found = np.concatenate(tables)
        return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else 0.0

    def _entries(self, method: str) -> list[Entry]:
        return [entry for entry in self.plan.entries if entry.method.name == method]

    def _table(self, entry: Entry, budget: int, value: Callable[[Record, int], float]) -> FloatArray:
        """Shape [seeds, problems]; a method that does not depend on the seed is repeated."""
        plan, method = self.plan, entry.method
        allowed = budget if method.name in DEPENDS_ON_BUDGET else max(plan.budgets)
        rows = []
        for seed in plan.seeds if method.iterative else plan.seeds[:1] * len(plan.seeds):
            keys = [(name, method.name, entry.digest, seed, allowed) for name in plan.problems.names]
            known = [self._known[key] for key in keys]
            rows.append([inf if record.skipped else value(record, budget) for record in known])
        return np.array(rows)


def summarize(plan: EvaluationPlan, records: Sequence[Record], *, reference: str = "mcmc") -> Summary:
    """Statistics of the runs of a plan."""
    times = Times(plan, records)
    methods = [name for name in plan.methods if times.applies(name)]
    cells = [cell for name in methods for cell in _cells(times, name, reference)]
    most = max(plan.budgets)
    profiles = {name: _profile(_scores(times, name, most)) for name in methods}
    return Summary(
        reference=reference,
        cells=tuple(cells),
        profiles=profiles,
        profile_at=_PROFILE_AT.tolist(),
        problems=plan.problems.names,
        seeds=plan.seeds,
        policies=plan.policies,
    )


def _cells(times: Times, method: str, reference: str) -> list[Cell]:
    budgets = times.plan.budgets
    scores = {str(budget): _scores(times, method, budget) for budget in budgets}
    points, intervals = _estimates(scores)
    found = []
    for budget in budgets:
        own = times.beside(method, budget)
        other = times.beside(reference, budget) if reference in times.plan.methods else own
        start = times.beside("data-parallel", budget) if "data-parallel" in times.plan.methods else own
        key = str(budget)
        found.append(
            Cell(
                method=method,
                budget=budget,
                iqm=float(points[key][0]),
                low=float(intervals[key][0, 0]),
                high=float(intervals[key][1, 0]),
                optimality_gap=float(points[key][1]),
                ratio=geometric_mean(own, other),
                wins=_wins(own, other),
                speed_up=geometric_mean(start, own),
                seconds=times.seconds(method, budget),
                iqm_by_policy=_by_policy(times, method, scores[key]),
            )
        )
    return found


def _by_policy(times: Times, method: str, scores: FloatArray) -> tuple[float, ...]:
    """The interquartile mean of each policy's runs."""
    if not times.uses_policy(method):
        return ()
    parts = np.split(scores, len(times.plan.policies))
    return tuple(float(metrics.aggregate_iqm(part)) for part in parts)


def _estimates(scores: dict[str, FloatArray]) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Interquartile mean and optimality gap for each table [runs, problems], and their intervals [2, 2]."""
    with _drawn_alike():
        found: tuple[dict[str, FloatArray], dict[str, FloatArray]] = library.get_interval_estimates(
            scores,
            lambda table: np.array([metrics.aggregate_iqm(table), metrics.aggregate_optimality_gap(table)]),
            reps=_REPETITIONS,
        )
    return found


@contextmanager
def _drawn_alike() -> Iterator[None]:
    """NumPy's own generator from a fixed state, as rliable draws from no other; afterwards it goes on."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _scores(times: Times, method: str, budget: int) -> FloatArray:
    """Scores [runs, problems]."""
    own = times.at(method, budget)
    return np.where(np.isfinite(own), times.best / own, 0.0)


def geometric_mean(own: FloatArray, other: FloatArray) -> float | None:
    """Of own / other where both are finite; None if nowhere."""
    both = np.isfinite(own) & np.isfinite(other)
    if not both.any():
        return None
    mean = float(np.log(own[both] / other[both]).mean())
    assert isfinite(mean), "times are above 0"
    return exp(mean)


def _wins(own: FloatArray, other: FloatArray) -> float | None:
    either = np.isfinite(own) | np.isfinite(other)
    if not either.any():
        return None
    faster, equal = (own < other)[either], (own == other)[either]
    return float(faster.mean() + 0.5 * equal.mean())


def _profile(scores: FloatArray) -> list[float]:
    return [float((scores >= at - 1e-12).mean()) for at in _PROFILE_AT]
