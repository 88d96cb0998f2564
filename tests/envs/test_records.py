import gymnasium
import pytest
from soaprl_envs.problems import TwoTowers
from soaprl_envs.records import load_record, save_record, validate

from soaprl.errors import SimulationError


@pytest.fixture
def record(synthetic_pool):
    environment = gymnasium.make("soaprl/Strategy-v0", problems=synthetic_pool).unwrapped
    environment.reset(seed=7, options={"problem": 1})
    environment.action_space.seed(0)
    environment.step(environment.action_space.sample())
    return environment.record("random")


def test_a_record_survives_its_file_and_replays(tmp_path, record):
    path = tmp_path / "record.json"
    save_record(path, record)
    loaded = load_record(path)
    assert loaded == record
    assert (loaded.seed, loaded.method) == (7, "random")
    assert loaded.spec.model == "synthetic-1"
    assert validate(loaded).iteration_time_s == record.iteration_time_s


def test_a_time_that_does_not_replay_is_an_error(record):
    # The next number there is in double precision.
    better = record.model_copy(update={"iteration_time_s": record.iteration_time_s * (1 - 2**-50)})
    with pytest.raises(SimulationError, match="does not replay: it claims iteration_time_s"):
        validate(better)
    with pytest.raises(SimulationError, match="peak_memory_bytes"):
        validate(record.model_copy(update={"peak_memory_bytes": 1}))


def test_a_strategy_that_was_changed_does_not_replay(record):
    name = next(n for n, mine in record.operators.items() if mine.devices != (3,) * len(mine.devices))
    operators = dict(record.operators)
    moved = operators[name].model_copy(update={"devices": (3,) * len(operators[name].devices)})
    with pytest.raises(SimulationError, match="does not replay"):
        validate(record.model_copy(update={"operators": {**operators, name: moved}}))
    del operators[name]
    with pytest.raises(SimulationError, match="its operators are not those of"):
        validate(record.model_copy(update={"operators": operators}))


def test_a_record_of_another_model_or_cluster_is_an_error(record):
    with pytest.raises(SimulationError, match="expected the cluster with the fingerprint"):
        validate(record.model_copy(update={"problem": {**record.problem, "cluster": "p100-1x4"}}))
    with pytest.raises(SimulationError, match="expected the graph with the fingerprint"):
        validate(record.model_copy(update={"problem": {**record.problem, "model": "synthetic-2"}}))


def test_a_problem_made_in_code_has_no_record():
    environment = gymnasium.make("soaprl/Strategy-v0", problems=TwoTowers()).unwrapped
    environment.reset()
    with pytest.raises(SimulationError, match="made in code"):
        environment.record("random")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "soaprl-strategy"}', '{"format": "soaprl-result"}'])
def test_other_files_are_no_records(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SimulationError):
        load_record(path)
