import numpy as np
import pytest
from soaprl_envs.choices import choices
from soaprl_envs.context import CONTEXT_COLUMNS, NUM_CONTEXT, Contexts
from soaprl_envs.kernels import fill_moving
from soaprl_envs.moving import link_loads

from soaprl.errors import StrategyError
from soaprl.strategy.strategy import OpConfig
from tests.envs.problems import branching, chain_problem, preset_problem, problem_of
from tests.envs.slow_context import SlowContext
from tests.toys import node_cluster, toy_type

CURRENT = CONTEXT_COLUMNS.index("is_current")


def random_choices(found, rng, size):
    return np.array([[rng.integers(len(c)) for c in found.configs] for _ in range(size)])


@pytest.mark.parametrize("name", ["p100-2x2", "k80-1x4", "mixed"])
def test_rows_equal_a_plain_computation(name):
    if name == "mixed":
        types = toy_type("quick"), toy_type("slow", memory_bytes=1 << 20)
        problem = problem_of(branching(), node_cluster(2, 2, device_types=types, types=(0, 0, 1, 1)))
    else:
        problem = preset_problem(name)
    found = choices(problem)
    slow, contexts = SlowContext(found), Contexts(found, 2)
    rng = np.random.default_rng(1)
    chosen = random_choices(found, rng, 2)
    decided = rng.random(chosen.shape) < 0.5
    contexts.assign(chosen, decided=decided)
    for operator in range(found.num_operators):
        rows = contexts.row(operator)
        for sample in range(2):
            expected = slow.row(operator, chosen[sample], decided[sample])
            assert rows[sample, : len(expected)] == pytest.approx(expected, abs=1e-5, rel=1e-5)
            assert (rows[sample, len(expected) :] == 0).all()


def test_choosing_step_by_step_equals_assigning_at_once():
    found = choices(preset_problem("p100-2x4"))
    rng = np.random.default_rng(2)
    stepwise, at_once = Contexts(found, 3), Contexts(found, 3)
    for _ in range(3):
        chosen = random_choices(found, rng, 3)
        for operator in rng.permutation(found.num_operators):
            stepwise.choose(int(operator), chosen[:, operator])
        at_once.assign(chosen)
        for operator in range(found.num_operators):
            # Loads are sums of whole ticks: exact, whatever came before.
            assert (stepwise.row(operator) == at_once.row(operator)).all()


def test_a_row_does_not_depend_on_what_the_operator_holds_itself():
    found = choices(preset_problem())
    rng = np.random.default_rng(3)
    contexts = Contexts(found, 1)
    chosen = random_choices(found, rng, 1)
    for operator in range(found.num_operators):
        contexts.assign(chosen)
        before = contexts.row(operator, current=False)
        for candidate in range(len(found.configs[operator])):
            contexts.choose(operator, candidate)
            assert (contexts.row(operator, current=False) == before).all()
            with_flag = contexts.row(operator)
            assert with_flag[0, candidate, CURRENT] == 1
            with_flag[..., CURRENT] = 0
            assert (with_flag == before).all()


def test_samples_may_ask_for_different_operators():
    found = choices(preset_problem())
    contexts = Contexts(found, 2)
    contexts.assign(random_choices(found, np.random.default_rng(4), 2))
    both = contexts.rows(np.array([1, 4]))
    assert (both[0] == contexts.row(1)[0]).all()
    assert (both[1] == contexts.row(4)[1]).all()


def test_nothing_moves_between_aligned_layouts_and_something_between_others():
    found = choices(chain_problem())
    tables = found.tables
    split = found.number(0, OpConfig((4, 1, 1), (0, 1, 2, 3)))
    other = found.number(0, OpConfig((1, 4, 1), (0, 1, 2, 3)))
    times = np.full(2, np.nan)
    fill_moving(
        tables.cluster,
        tables.moves,
        tables.alone.num_tasks,
        tables.alone.devices,
        link_loads(tables.cluster),
        np.array([tables.moves.kind[0]] * 2),
        np.array([split, other]),
        np.array([split, split]),
        times,
    )
    assert times[0] == 0
    # By channel to by sample: device d has 16 samples of 4 channels, and needs 4 samples of 16 channels. It
    # lacks 4 x 12 elements of 4 bytes, 4 x 4 x 4 = 64 bytes from each other device. Nodes have one network
    # link each way at 1 byte/s, which 4 such transfers share: 256 s, and as long for the gradients.
    assert times[1] == 2 * 256


def test_tied_operators_agree_or_not():
    found = choices(preset_problem())
    contexts = Contexts(found)
    agreement = CONTEXT_COLUMNS.index("tied_agreement")
    tied = found.problem.graph.index["right"]
    assert (contexts.row(tied)[..., agreement] == 0).all()
    config = found.configs[0][3]
    contexts.choose(found.problem.graph.index["top"], 3)
    row = contexts.row(tied)[0, :, agreement]
    assert row[found.number(tied, config)] == 1
    assert row.sum() == 1


def test_a_candidate_that_does_not_exist_is_refused():
    found = choices(preset_problem())
    contexts = Contexts(found, 2)
    with pytest.raises(StrategyError, match="where the mask of 'branching' is true"):
        contexts.choose(0, 10_000)
    wrong = np.zeros((2, found.num_operators), np.int64)
    wrong[1, 2] = -1
    with pytest.raises(StrategyError, match="operator 2 of sample 1"):
        contexts.assign(wrong)
    assert (contexts.chosen == found.start).all()


def test_rows_can_be_written_where_the_caller_wants():
    found = choices(preset_problem())
    out = np.full((1, found.num_candidates, NUM_CONTEXT), np.nan, np.float32)
    assert Contexts(found).row(2, out=out) is out
    assert np.isfinite(out).all()
