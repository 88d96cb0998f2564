"""Compiled programs against the unsplit graph: outputs, loss, every gradient, on any number of ranks."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from soaprl.graph.capture import capture, graph_from_program
from soaprl.runtime.program import CompileOptions
from soaprl.runtime.reference import run_graph
from soaprl.runtime.threads import one_thread
from soaprl.strategy.strategy import Sharding
from tests.runtime.checking import Case, Outcome, compare, compare_tensors, gradients, sources
from tests.runtime.executing import execute, random_strategy
from tests.runtime.random_cases import GENERATORS
from tests.runtime.random_models import random_model

NUM_STRATEGIES = 4


def check_programs(case: Case, rng: random.Random, *, num_strategies: int = NUM_STRATEGIES) -> None:
    """Fails unless random strategies on 2 to 8 ranks compute what the unsplit graph does."""
    with one_thread():
        program = capture(case.factory, case.batch_size, name=case.name)
        module, args = case.factory(case.batch_size)
        module.train()
        graph = graph_from_program(program, coarsened=rng.random() < 0.8)
        seed = rng.randrange(1000)
        whole = tuple((1,) * len(op.factors) for op in graph.operators)
        expected = unsplit(graph, whole, module, args, seed)
        for _ in range(num_strategies):
            num_ranks = rng.randint(2, 8)
            sharding = rng.choice(tuple(Sharding))
            strategy = replace(random_strategy(graph, num_ranks, rng, case), sharding=sharding)
            try:
                found, _, ranks = execute(
                    graph,
                    strategy,
                    module,
                    args,
                    num_ranks=num_ranks,
                    seed=seed,
                    options=CompileOptions(
                        batch_norm="synchronized",
                        bucket_bytes=rng.choice([1, 200, 2**20]),
                        prefetch=rng.randint(1, 4),
                        sum_bytes=rng.choice([0, 0, 2**21]),
                        sum_ranks=2,
                    ),
                )
                degrees = tuple(config.degrees for config in strategy.configs)
                compare_tensors(graph, degrees, found, expected)
                compare(found, expected, "gradients")
                assert not any(state.num_held for state in ranks.states), "something is never used"
            except Exception as error:
                raise AssertionError(f"{case.name} on {num_ranks} ranks, {strategy}: {error}") from error


def _zero(module):
    return sum(0.0 * p.sum() for p in module.parameters())


def unsplit(graph, degrees, module, args, seed) -> Outcome:
    tensors = run_graph(graph, degrees, sources(graph, module, args), seed=seed)
    loss = tensors[graph.loss]
    # Some random graphs train nothing.
    flows = gradients(module, loss) if loss.requires_grad else gradients(module, loss * 0 + _zero(module))
    return Outcome(loss.detach().reshape(()), flows, {k: t.detach() for k, t in tensors.items()})


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph_computes_on_any_ranks_what_it_computes_unsplit(seed: int) -> None:
    check_programs(random_model(seed), random.Random(seed))


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_a_random_operator_computes_on_any_ranks_what_it_computes_unsplit(
    generator: Callable[[random.Random], Case],
) -> None:
    rng = random.Random(7)
    check_programs(generator(rng), rng)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_ten_thousand_random_strategies(block: int) -> None:
    # 20 blocks x 50 graphs x 10 strategies.
    for seed in range(1000 + 50 * block, 1050 + 50 * block):
        rng = random.Random(seed)
        case = random_model(seed, rng.randint(3, 8)) if seed % 5 else rng.choice(GENERATORS)(rng)
        check_programs(case, rng, num_strategies=10)
