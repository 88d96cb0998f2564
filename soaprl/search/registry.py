"""The list of methods that the command line, benchmarks and evaluations share."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from soaprl.errors import SearchError, unknown_name
from soaprl.search.metropolis import MetropolisSettings, metropolis
from soaprl.search.simple import (
    search_data_parallel,
    search_model_parallel,
    search_random,
    search_single_device,
)
from soaprl.search.task import Budget, Evaluator, Progress, SearchResult, SearchTask
from soaprl.simulator.problem import Problem


class SearchFunction(Protocol):
    """Runs a method."""

    def __call__(self, task: SearchTask) -> SearchResult:
        """Find a strategy for `task`."""
        ...


class ChainsFunction(Protocol):
    """Runs a method with several chains."""

    def __call__(
        self, task: SearchTask, num_chains: int, more_evaluators: Sequence[Evaluator]
    ) -> SearchResult:
        """Find a strategy for `task` with `num_chains` chains, on one thread for each evaluator."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to choose a strategy.

    Attributes:
        name: As on the command line.
        description: One line for people.
        source: The paper or system it comes from.
        iterative: Whether it needs a budget (and depends on the seed); otherwise it makes one strategy.
        resumable: Whether it keeps a state file.
        function: Runs it.
        chains: Runs it with several chains side by side; None for methods without chains.
    """

    name: str
    description: str
    source: str
    iterative: bool
    resumable: bool
    function: SearchFunction
    chains: ChainsFunction | None = None


def methods() -> dict[str, Method]:
    """All methods by name, in the order in which they are shown."""
    known = (
        Method(
            name="mcmc",
            description="Metropolis search from data parallelism and random strategies",
            source="Jia, Zaharia, Aiken: Beyond Data and Model Parallelism (MLSys 2019)",
            iterative=True,
            resumable=True,
            function=metropolis,
            chains=_metropolis_chains,
        ),
        Method(
            name="data-parallel",
            description="every operator split by sample over all devices",
            source="common practice",
            iterative=False,
            resumable=False,
            function=search_data_parallel,
        ),
        Method(
            name="single-device",
            description="everything on device 0",
            source="common practice",
            iterative=False,
            resumable=False,
            function=search_single_device,
        ),
        Method(
            name="model-parallel",
            description="contiguous stages of whole operators, balanced by time, one a device",
            source="common practice; stages without micro-batches",
            iterative=False,
            resumable=False,
            function=search_model_parallel,
        ),
        Method(
            name="random",
            description="independent random strategies, the best one kept",
            source="baseline",
            iterative=True,
            resumable=False,
            function=search_random,
        ),
    )
    return {method.name: method for method in known}


def find_method(name: str) -> Method:
    """The method called `name`; raises `UnknownNameError` with close names."""
    known = methods()
    if name not in known:
        raise unknown_name("method", name, known)
    return known[name]


def search(
    method: Method | str,
    task: SearchTask,
    *,
    num_chains: int = 1,
    more_evaluators: Sequence[Evaluator] = (),
) -> SearchResult:
    """Run a method.

    Args:
        method: The method, or its name.
        task: What to search, and how long.
        num_chains: Chains that walk side by side, for methods that have chains.
        more_evaluators: Answer as the task's evaluator does; several chains use a thread for each.

    Raises:
        UnknownNameError: There is no method of this name.
        SearchError: A state file or several chains are asked for and the method has none; or the method's own
            errors.
    """
    chosen = find_method(method) if isinstance(method, str) else method
    if num_chains < 1:
        raise SearchError(f"expected 1 or more chains, found {num_chains}.")
    if task.resume and not chosen.resumable:
        resumable = ", ".join(m.name for m in methods().values() if m.resumable)
        raise SearchError(f"method {chosen.name!r} cannot be resumed; these can: {resumable}.")
    if num_chains == 1:
        return chosen.function(task)
    if chosen.chains is None:
        known = ", ".join(m.name for m in methods().values() if m.chains is not None)
        raise SearchError(
            f"method {chosen.name!r} cannot walk {num_chains} chains side by side; these can: {known}."
        )
    return chosen.chains(task, num_chains, more_evaluators)


def _metropolis_chains(
    task: SearchTask, num_chains: int, more_evaluators: Sequence[Evaluator]
) -> SearchResult:
    return metropolis(task, MetropolisSettings(num_chains=num_chains), more_evaluators=more_evaluators)


def compare(
    problem: Problem,
    evaluator: Evaluator,
    names: Iterable[str],
    budget: Budget,
    *,
    seeds: Iterable[int] = (0,),
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> list[SearchResult]:
    """Every method under the same budget; iterative ones once for each seed.

    A KeyboardInterrupt ends the comparison with the method it interrupts.

    Returns:
        The results, by method in the order of `names`, then by seed.

    Raises:
        UnknownNameError: A name is unknown; nothing was run.
    """
    chosen = [find_method(name) for name in names]
    seeds = tuple(seeds)
    task = SearchTask(problem=problem, evaluator=evaluator, budget=budget, clock=clock, progress=progress)
    runs = [(method, seed) for method in chosen for seed in (seeds if method.iterative else seeds[:1])]
    results: list[SearchResult] = []
    for method, seed in runs:
        results.append(search(method, replace(task, seed=seed)))
        if results[-1].interrupted:
            break
    return results
