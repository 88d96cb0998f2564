"""Methods that build an expert's strategy, and these strategies as starts of searches.

The strategies themselves are `soaprl.strategy.experts` and `soaprl.strategy.experts_megatron`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import TypeAlias

from soaprl.errors import SearchError
from soaprl.search.simple import best_of
from soaprl.search.stages import model_parallel
from soaprl.search.task import Budget, SearchResult, SearchTask, rank
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts import gnmt_expert, one_weird_trick
from soaprl.strategy.experts_megatron import megatron, megatron_degrees
from soaprl.strategy.placing import Inapplicable
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy

_MEGATRON = "megatron"

NamedExpert: TypeAlias = tuple[str, Callable[[Problem], Strategy | None]]


def search_one_weird_trick(task: SearchTask) -> SearchResult:
    """Convolutions by sample, fully connected layers by channel; `SearchError` where it does not apply."""
    built = one_weird_trick(task.problem.graph, task.problem.cluster)
    return best_of(task, "one-weird-trick", (_applied("one-weird-trick", built),))


def search_gnmt_expert(task: SearchTask) -> SearchResult:
    """Replicas on nodes, recurrent layers on devices; `SearchError` where it does not apply."""
    built = gnmt_expert(task.problem.graph, task.problem.cluster)
    return best_of(task, "gnmt-expert", (_applied("gnmt-expert", built),))


def search_megatron(task: SearchTask) -> SearchResult:
    """The best of all legal tensor degrees, each simulated; `SearchError` where it does not apply."""
    graph, cluster = task.problem.graph, task.problem.cluster
    degrees = megatron_degrees(graph, cluster)
    if isinstance(degrees, Inapplicable):
        raise _refusal(_MEGATRON, degrees)
    built = (megatron(graph, cluster, tensor_degree=degree) for degree in degrees)
    return best_of(task, _MEGATRON, tuple(_applied(_MEGATRON, strategy) for strategy in built))


def expert_strategies(problem: Problem) -> tuple[tuple[str, Strategy], ...]:
    """The experts' strategies that apply to a problem, by name; Megatron's once for each tensor degree."""
    graph, cluster = problem.graph, problem.cluster
    built = {
        "one-weird-trick": one_weird_trick(graph, cluster),
        "gnmt-expert": gnmt_expert(graph, cluster),
    }
    degrees = megatron_degrees(graph, cluster)
    for degree in () if isinstance(degrees, Inapplicable) else degrees:
        built[f"{_MEGATRON}-{degree}"] = megatron(graph, cluster, tensor_degree=degree)
    return tuple((name, found) for name, found in built.items() if isinstance(found, Strategy))


def starting_strategies(problem: Problem) -> tuple[tuple[str, Strategy], ...]:
    """Data parallelism and experts by name, as far as they apply; model parallelism if none does."""
    graph, cluster = problem.graph, problem.cluster
    found: list[tuple[str, Strategy]] = []
    if graph.batch_size >= cluster.num_devices:
        found.append(("data-parallel", data_parallel(graph, cluster)))
    for name, strategy in expert_strategies(problem):
        if all(strategy != other for _, other in found):
            found.append((name, strategy))
    return tuple(found) or (("model-parallel", model_parallel(problem)),)


def with_experts(
    task: SearchTask, search: Callable[[SearchTask, Sequence[NamedExpert]], SearchResult]
) -> SearchResult:
    """What `search` finds with the experts that apply as further starts.

    Where Megatron has several tensor degrees, they are simulated first and the best one is the start, unless
    it is 1, data parallelism: a search that shares its budget among its starts would waste it on the others.
    These evaluations and their time count: they are taken from the budget and added to the result. A budget
    that is hardly larger leaves Megatron out.
    """
    strategies = expert_strategies(task.problem)
    others = [found for found in strategies if not found[0].startswith(_MEGATRON)]
    degrees = [found for found in strategies if found[0].startswith(_MEGATRON)]
    limit = inf if task.budget.evaluations is None else task.budget.evaluations
    if len(degrees) < 2 or limit <= 2 * len(degrees):
        return search(task, as_experts(others))
    origin_s = task.clock()
    ranked = [(rank(task.evaluator.evaluate(strategy)), index) for index, (_, strategy) in enumerate(degrees)]
    spent_s = task.clock() - origin_s
    best = degrees[min(ranked)[1]]
    chosen = others if best[0] == f"{_MEGATRON}-1" else [*others, best]
    found = search(_reduced(task, len(degrees), spent_s), as_experts(chosen))
    return replace(
        found,
        num_evaluations=found.num_evaluations + len(degrees),
        search_time_s=found.search_time_s + spent_s,
        history_evaluations=found.history_evaluations + len(degrees),
        history_s=found.history_s + spent_s,
    )


def starts_for(problem: Problem, start: Strategy | None) -> tuple[tuple[str, Strategy], ...]:
    """`start` alone, under a name that tells it from others; without it all of `starting_strategies`.

    Raises:
        StrategyError: `start` does not fit the graph or the cluster.
    """
    if start is None:
        return starting_strategies(problem)
    check_strategy(problem.graph, problem.cluster.num_devices, start)
    digest = hashlib.sha256(repr(start).encode()).hexdigest()
    return ((f"strategy {digest[:16]}", start),)


def refusal_prefix(method: str) -> str:
    """How the message begins with which a method says that it does not apply."""
    return f"method {method!r} does not apply: "


def as_experts(strategies: Sequence[tuple[str, Strategy]]) -> tuple[NamedExpert, ...]:
    """Strategies as the functions of a problem that Metropolis search takes."""

    def constant(strategy: Strategy) -> Callable[[Problem], Strategy | None]:
        return lambda problem: strategy

    return tuple((name, constant(strategy)) for name, strategy in strategies)


def _reduced(task: SearchTask, num_evaluations: int, spent_s: float) -> SearchTask:
    """`task` with what is left of its budget."""
    evaluations, seconds = task.budget.evaluations, task.budget.seconds
    left = Budget(
        evaluations=None if evaluations is None else evaluations - num_evaluations,
        # A budget of no time at all is none: a search that is out of time still evaluates its first start.
        seconds=None if seconds is None else max(seconds - spent_s, 1e-9),
    )
    return replace(task, budget=left)


def _applied(method: str, built: Strategy | Inapplicable) -> Strategy:
    if isinstance(built, Inapplicable):
        raise _refusal(method, built)
    return built


def _refusal(method: str, found: Inapplicable) -> SearchError:
    return SearchError(f"{refusal_prefix(method)}{found.reason}.")
