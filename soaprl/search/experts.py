"""Methods that build an expert's strategy, and these strategies as starts of searches.

The strategies themselves are `soaprl.strategy.experts` and `soaprl.strategy.experts_megatron`.
"""

import hashlib
from collections.abc import Callable

from soaprl.errors import SearchError
from soaprl.search.simple import best_of
from soaprl.search.stages import model_parallel
from soaprl.search.task import SearchResult, SearchTask
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts import gnmt_expert, one_weird_trick
from soaprl.strategy.experts_megatron import megatron, megatron_degrees, megatron_within_nodes
from soaprl.strategy.placing import Inapplicable
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy


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
        raise _refusal("megatron", degrees)
    built = (megatron(graph, cluster, tensor_degree=degree) for degree in degrees)
    return best_of(task, "megatron", tuple(_applied("megatron", strategy) for strategy in built))


def expert_starts() -> tuple[tuple[str, Callable[[Problem], Strategy | None]], ...]:
    """Experts by name: the strategy of each for a problem, or None where it does not apply.

    Megatron's has the largest tensor degree that stays on one node.
    """
    builders = {
        "one-weird-trick": one_weird_trick,
        "gnmt-expert": gnmt_expert,
        "megatron": megatron_within_nodes,
    }

    def start(name: str) -> Callable[[Problem], Strategy | None]:
        def build(problem: Problem) -> Strategy | None:
            built = builders[name](problem.graph, problem.cluster)
            return None if isinstance(built, Inapplicable) else built

        return build

    return tuple((name, start(name)) for name in builders)


def starting_strategies(problem: Problem) -> tuple[tuple[str, Strategy], ...]:
    """Data parallelism and experts by name, as far as they apply; model parallelism if none does."""
    graph, cluster = problem.graph, problem.cluster
    found: list[tuple[str, Strategy]] = []
    if graph.batch_size >= cluster.num_devices:
        found.append(("data-parallel", data_parallel(graph, cluster)))
    for name, build in expert_starts():
        strategy = build(problem)
        if strategy is not None and all(strategy != other for _, other in found):
            found.append((name, strategy))
    return tuple(found) or (("model-parallel", model_parallel(problem)),)


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


def _applied(method: str, built: Strategy | Inapplicable) -> Strategy:
    if isinstance(built, Inapplicable):
        raise _refusal(method, built)
    return built


def _refusal(method: str, found: Inapplicable) -> SearchError:
    return SearchError(f"{refusal_prefix(method)}{found.reason}.")
