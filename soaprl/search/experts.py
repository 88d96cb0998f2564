"""Methods that build an expert's strategy, and these strategies as starts of searches.

The strategies themselves are `soaprl.strategy.experts` and `soaprl.strategy.experts_megatron`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import TypeAlias

from soaprl.errors import SearchError
from soaprl.graph.operators import TensorRole
from soaprl.search.simple import best_of
from soaprl.search.stages import model_parallel
from soaprl.search.task import Budget, SearchResult, SearchTask, rank
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts import gnmt_expert, one_weird_trick
from soaprl.strategy.experts_megatron import megatron, megatron_degrees
from soaprl.strategy.placing import Inapplicable
from soaprl.strategy.strategy import Sharding, Strategy
from soaprl.strategy.validation import check_config, check_strategy

FSDP = "fsdp"
_MEGATRON, _DATA_PARALLEL = "megatron", "data-parallel"

NamedExpert: TypeAlias = tuple[str, Callable[[Problem], Strategy | None]]


def search_one_weird_trick(task: SearchTask) -> SearchResult:
    """Convolutions by sample, fully connected layers by channel; `SearchError` where it does not apply."""
    built = one_weird_trick(task.part.graph, task.problem.cluster)
    return best_of(task, "one-weird-trick", (_applied("one-weird-trick", built),))


def search_gnmt_expert(task: SearchTask) -> SearchResult:
    """Replicas on nodes, recurrent layers on devices; `SearchError` where it does not apply."""
    built = gnmt_expert(task.part.graph, task.problem.cluster)
    return best_of(task, "gnmt-expert", (_applied("gnmt-expert", built),))


def search_megatron(task: SearchTask) -> SearchResult:
    """The best of all legal tensor degrees, each simulated; `SearchError` where it does not apply."""
    graph, cluster = task.part.graph, task.problem.cluster
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
        found.append((_DATA_PARALLEL, data_parallel(graph, cluster)))
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
    If none of them fits in memory (of other models: if data parallelism does not, which is simulated where
    the state of the model is more than a quarter of the memory), data parallelism with sharded state is
    simulated too, and the best sharding that fits is a start. These evaluations and their time count: they
    are taken from the budget and added to the result. A budget that is hardly larger leaves Megatron out.
    """
    part = task.part
    strategies = expert_strategies(part)
    others = [found for found in strategies if not found[0].startswith(_MEGATRON)]
    degrees = [found for found in strategies if found[0].startswith(_MEGATRON)]
    limit = inf if task.budget.evaluations is None else task.budget.evaluations
    if len(degrees) < 2:
        degrees = _large_data_parallelism(part)
    if not degrees or limit <= 2 * len(degrees):
        return search(task, as_experts(others))
    origin_s = task.clock()
    (unfit, _), best = _best_of_starts(task, degrees)
    chosen = others if best[0] in (_DATA_PARALLEL, f"{_MEGATRON}-1") else [*others, best]
    number = len(degrees)
    splittable = part.graph.batch_size >= part.cluster.num_devices
    wanted = unfit and splittable and task.sharding is Sharding.NONE
    shardings = sharded_data_parallelism(task) if wanted else ()
    if shardings and limit > 2 * (number + len(shardings)):
        (unfit, _), best = _best_of_starts(task, shardings)
        number += len(shardings)
        chosen = chosen if unfit else [*chosen, best]
    spent_s = task.clock() - origin_s
    found = search(_reduced(task, number, spent_s), as_experts(chosen))
    return replace(
        found,
        num_evaluations=found.num_evaluations + number,
        search_time_s=found.search_time_s + spent_s,
        history_evaluations=found.history_evaluations + number,
        history_s=found.history_s + spent_s,
    )


def _best_of_starts(
    task: SearchTask, starts: Sequence[tuple[str, Strategy]]
) -> tuple[tuple[bool, float], tuple[str, Strategy]]:
    """The rank of the best of some strategies, simulated as the task shards them, and that one."""
    ranked = [
        (rank(task.evaluator.evaluate(task.completed(strategy))), index)
        for index, (_, strategy) in enumerate(starts)
    ]
    best, index = min(ranked)
    return best, starts[index]


def _large_data_parallelism(problem: Problem) -> list[tuple[str, Strategy]]:
    """Data parallelism by name, if the model's state is more than a quarter of the smallest memory."""
    graph, cluster = problem.graph, problem.cluster
    trained = sum(t.num_bytes for t in graph.tensors if t.role is TensorRole.PARAMETER and t.requires_grad)
    state_bytes = (2 + problem.options.state_per_parameter_byte) * trained
    smallest_bytes = min(cluster.device_types[device.type].memory_bytes for device in cluster.devices)
    if graph.batch_size < cluster.num_devices or 4 * state_bytes <= smallest_bytes:
        return []
    return [(_DATA_PARALLEL, data_parallel(graph, cluster))]


def sharded_data_parallelism(task: SearchTask) -> tuple[tuple[str, Strategy], ...]:
    """Data parallelism under each sharding, by name; nothing where there are no collectives, or one device.

    Raises:
        StrategyError: The batch is smaller than the number of devices.
    """
    problem = task.part
    if problem.options.paper or problem.cluster.num_devices < 2:
        return ()
    unsharded = data_parallel(problem.graph, problem.cluster)
    wanted = [task.sharding] if task.sharding is not Sharding.NONE else list(Sharding)[1:]
    return tuple((f"{FSDP}-{sharding}", replace(unsharded, sharding=sharding)) for sharding in wanted)


def starts_for(task: SearchTask, start: Strategy | None) -> tuple[tuple[str, Strategy], ...]:
    """`start` alone, under a name that tells it from others; without it all of `starting_strategies`.

    Sharded, and the batch cut, as the task says, unless `start` does so itself.

    Raises:
        StrategyError: `start` does not fit the graph or the cluster.
        GraphError: The batch cannot be cut as the task says.
    """
    problem, part = task.problem, task.part
    if start is None:
        found = starting_strategies(part)
        return tuple((task.named(name), task.completed(strategy)) for name, strategy in found)
    start, num_devices = task.completed(start), problem.cluster.num_devices
    check_strategy(problem.graph, num_devices, start)
    for operator, config in zip(part.graph.operators, start.configs, strict=True):
        check_config(operator, config, num_devices)
    return ((f"strategy {start.fingerprint[:16]}", start),)


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
