"""The list of methods that the command line, benchmarks and evaluations share."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from soaprl.errors import GraphError, PolicyError, SearchError, StrategyError, unknown_name
from soaprl.graph.micro_batch import micro_batch
from soaprl.search.annealing import annealing
from soaprl.search.descent import coordinate_descent
from soaprl.search.evolution import evolution
from soaprl.search.exhaustive import search_exhaustive
from soaprl.search.experts import (
    FSDP,
    as_experts,
    refusal_prefix,
    search_gnmt_expert,
    search_megatron,
    search_one_weird_trick,
    starts_for,
    with_experts,
)
from soaprl.search.joint import joint
from soaprl.search.method import Method
from soaprl.search.metropolis import MetropolisSettings, metropolis
from soaprl.search.optcnn import search_optcnn
from soaprl.search.pipeline import ACCUMULATION, PIPELINE, search_accumulation, search_pipeline
from soaprl.search.sharded import search_fsdp
from soaprl.search.simple import (
    search_data_parallel,
    search_model_parallel,
    search_random,
    search_single_device,
)
from soaprl.search.task import Budget, Evaluator, Progress, SearchResult, SearchTask
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Sharding, Strategy

__all__ = ["Method", "Skipped", "attempt", "compare", "find_method", "methods", "search"]


def methods() -> dict[str, Method]:
    """All methods by name, in the order in which they are shown."""
    known = (_mcmc(), *_simple(), *_experts(), *_over_time(), *_exact(), *_improving(), _random())
    return {method.name: method for method in known}


def _mcmc() -> Method:
    return Method(
        name="mcmc",
        description="Metropolis search from data parallelism, experts and random strategies",
        source="Jia, Zaharia, Aiken: Beyond Data and Model Parallelism (MLSys 2019)",
        iterative=True,
        resumable=True,
        function=_metropolis,
        chains=_metropolis_chains,
        started=_metropolis_from,
    )


def _simple() -> tuple[Method, ...]:
    return (
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
    )


def _experts() -> tuple[Method, ...]:
    return (
        Method(
            name="one-weird-trick",
            description="convolutions by sample, fully connected layers by channel",
            source="Krizhevsky: One weird trick for parallelizing CNNs (2014)",
            iterative=False,
            resumable=False,
            function=search_one_weird_trick,
        ),
        Method(
            name="gnmt-expert",
            description="a replica on each node; inside, recurrent layers on devices, softmax by vocabulary",
            source="Wu et al.: Google's Neural Machine Translation System (2016)",
            iterative=False,
            resumable=False,
            function=search_gnmt_expert,
        ),
        Method(
            name="megatron",
            description="transformers: column and row pairs, best of all tensor degrees",
            source="Shoeybi et al.: Megatron-LM (2019); Korthikanti et al. (2022)",
            iterative=False,
            resumable=False,
            function=search_megatron,
        ),
        Method(
            name=FSDP,
            description="data parallelism with sharded state: ZeRO-1, 2 or 3, the best that fits",
            source="Rajbhandari et al.: ZeRO (SC 2020); Zhao et al.: PyTorch FSDP (2023)",
            iterative=False,
            resumable=False,
            function=search_fsdp,
        ),
    )


def _over_time() -> tuple[Method, ...]:
    return (
        Method(
            name=PIPELINE,
            description="balanced stages and micro-batches (1F1B, GPipe); inside by sample or as megatron",
            source="Huang et al.: GPipe (2019); Narayanan et al.: PipeDream (2021), Megatron-LM (2021)",
            iterative=False,
            resumable=False,
            function=search_pipeline,
        ),
        Method(
            name=ACCUMULATION,
            description="data or tensor parallelism with micro-batches, gradients summed over them",
            source="common practice",
            iterative=False,
            resumable=False,
            function=search_accumulation,
        ),
    )


def _exact() -> tuple[Method, ...]:
    return (
        Method(
            name="optcnn",
            description="degrees by dynamic programming, if layers run one after the other",
            source="Jia, Lin, Qi, Aiken: Exploring Hidden Dimensions (ICML 2018)",
            iterative=False,
            resumable=False,
            function=search_optcnn,
            whole_batch=True,
        ),
        Method(
            name="exhaustive",
            description="the proved optimum of small problems, by lower bounds (up to 8 devices)",
            source="A*, as in section 8.4 of Jia, Zaharia, Aiken (MLSys 2019)",
            iterative=False,
            resumable=True,
            function=search_exhaustive,
            whole_batch=True,
        ),
    )


def _improving() -> tuple[Method, ...]:
    return (
        Method(
            name="joint",
            description="configurations with ZeRO level, micro-batches and stages, by successive halving",
            source="Jamieson, Talwalkar: Non-stochastic Best Arm Identification (2016); Metropolis walks",
            iterative=True,
            resumable=True,
            function=joint,
            started=joint,
            chooses_sharding=True,
        ),
        Method(
            name="coordinate-descent",
            description="the best of all candidates of one operator at a time, to a local optimum",
            source="the local optimality check of Jia, Zaharia, Aiken (MLSys 2019)",
            iterative=True,
            resumable=True,
            function=coordinate_descent,
            started=coordinate_descent,
        ),
        Method(
            name="annealing",
            description="simulated annealing, longer with every restart",
            source="Kirkpatrick, Gelatt, Vecchi: Optimization by simulated annealing (1983)",
            iterative=True,
            resumable=True,
            function=annealing,
            started=annealing,
        ),
        Method(
            name="evolution",
            description="a population of strategies; crossover by subgraph, mutation by proposals",
            source="steady-state genetic algorithm; Whitley: The GENITOR algorithm (1989)",
            iterative=True,
            resumable=True,
            function=evolution,
            started=evolution,
        ),
    )


def _random() -> Method:
    return Method(
        name="random",
        description="independent random strategies, the best one kept",
        source="baseline",
        iterative=True,
        resumable=False,
        function=search_random,
    )


def find_method(name: str, known: Mapping[str, Method] | None = None) -> Method:
    """The method called `name`; raises `UnknownNameError` with close names.

    Args:
        name: The name.
        known: Where to look; None: `methods`. Packages above this one have methods of their own.
    """
    known = methods() if known is None else known
    if name not in known:
        raise unknown_name("method", name, known)
    return known[name]


def search(
    method: Method | str,
    task: SearchTask,
    *,
    num_chains: int = 1,
    more_evaluators: Sequence[Evaluator] = (),
    start: Strategy | None = None,
) -> SearchResult:
    """Run a method.

    Args:
        method: The method, or its name.
        task: What to search, and how long.
        num_chains: Chains that walk side by side, for methods that have chains.
        more_evaluators: Answer as the task's evaluator does; several chains use a thread for each.
        start: A strategy to begin with, for methods that improve one; None: those that the method makes. What
            is found shards what it does, and has its micro-batches, unless the method chooses them.

    Raises:
        UnknownNameError: There is no method of this name.
        SearchError: A state file, several chains, a start or micro-batches are asked for and the method has
            none; the method does not apply to the model; or the method's own errors.
    """
    chosen = find_method(method) if isinstance(method, str) else method
    if num_chains < 1:
        raise SearchError(f"expected 1 or more chains, found {num_chains}.")
    if task.resume and not chosen.resumable:
        resumable = ", ".join(m.name for m in methods().values() if m.resumable)
        raise SearchError(f"method {chosen.name!r} cannot be resumed; these can: {resumable}.")
    if start is not None:
        return _started(chosen, task, start, num_chains)
    _check_micro_batches(chosen, task)
    if num_chains == 1:
        return chosen.function(task)
    if chosen.chains is None:
        known = ", ".join(m.name for m in methods().values() if m.chains is not None)
        raise SearchError(
            f"method {chosen.name!r} cannot walk {num_chains} chains side by side; these can: {known}."
        )
    return chosen.chains(task, num_chains, more_evaluators)


def _started(method: Method, task: SearchTask, start: Strategy, num_chains: int) -> SearchResult:
    if method.started is None:
        known = ", ".join(m.name for m in methods().values() if m.started is not None)
        raise SearchError(f"method {method.name!r} begins with no given strategy; these can: {known}.")
    if num_chains > 1:
        raise SearchError(
            f"expected one chain from a given strategy, found {num_chains}. Leave one of the two out."
        )
    if not method.chooses_sharding:
        sharding = task.sharding if start.sharding is Sharding.NONE else start.sharding
        micro_batches = task.micro_batches if start.is_whole else start.micro_batches
        task = replace(task, sharding=sharding, micro_batches=micro_batches)
    _check_micro_batches(method, task)
    return method.started(task, start)


def _check_micro_batches(method: Method, task: SearchTask) -> None:
    """Raises `SearchError` if the task asks for micro-batches that the method or the batch does not have."""
    if task.micro_batches == 1:
        return
    if method.whole_batch:
        known = ", ".join(m.name for m in methods().values() if not m.whole_batch)
        raise SearchError(
            f"{refusal_prefix(method.name)}it knows strategies without micro-batches alone, and"
            f" {task.micro_batches} are asked for; these know them: {known}."
        )
    try:
        micro_batch(task.problem.graph, task.micro_batches)
    except GraphError as error:
        raise SearchError(f"{refusal_prefix(method.name)}{error}") from error


def _metropolis(task: SearchTask) -> SearchResult:
    return with_experts(task, lambda left, experts: metropolis(left, experts=experts))


def _metropolis_from(task: SearchTask, start: Strategy) -> SearchResult:
    """From data parallelism, from the given strategy and from a random one, but not from experts."""
    return metropolis(task, experts=as_experts(starts_for(task, start)))


def _metropolis_chains(
    task: SearchTask, num_chains: int, more_evaluators: Sequence[Evaluator]
) -> SearchResult:
    settings = MetropolisSettings(num_chains=num_chains)
    return with_experts(
        task,
        lambda left, experts: metropolis(left, settings, experts=experts, more_evaluators=more_evaluators),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A method that refused a problem, and why: a sentence for people."""

    method: str
    reason: str


def compare(
    problem: Problem,
    evaluator: Evaluator,
    names: Iterable[str],
    budget: Budget,
    *,
    seeds: Iterable[int] = (0,),
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
    sharding: Sharding = Sharding.NONE,
) -> list[SearchResult | Skipped]:
    """Every method under the same budget; iterative ones once for each seed.

    A method that refuses the problem (it does not apply to the model, say) is skipped. A KeyboardInterrupt
    ends the comparison with the method it interrupts.

    Returns:
        The results, by method in the order of `names`, then by seed; one `Skipped` for a method that refuses.

    Raises:
        UnknownNameError: A name is unknown; nothing was run.
        SearchError: The budget has no limit and one of the methods needs one; nothing was run.
    """
    chosen = [find_method(name) for name in names]
    for method in chosen:
        if method.iterative:
            budget.require_limit(method.name)
    seeds = tuple(seeds)
    task = SearchTask(
        problem=problem,
        evaluator=evaluator,
        budget=budget,
        clock=clock,
        progress=progress,
        sharding=sharding,
    )
    found: list[SearchResult | Skipped] = []
    for method in chosen:
        for seed in seeds if method.iterative else seeds[:1]:
            result = attempt(method, replace(task, seed=seed))
            found.append(result)
            if isinstance(result, Skipped):
                break
            if result.interrupted:
                return found
    return found


def attempt(method: Method | str, task: SearchTask) -> SearchResult | Skipped:
    """What a method finds, or why it refuses the problem."""
    chosen = find_method(method) if isinstance(method, str) else method
    try:
        return search(chosen, task)
    except (PolicyError, SearchError, StrategyError) as error:
        refusal = str(error).removeprefix(refusal_prefix(chosen.name))
        return Skipped(method=chosen.name, reason=refusal)
