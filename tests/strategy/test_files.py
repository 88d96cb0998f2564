import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.errors import OutputError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.files import (
    ClusterReference,
    FileModel,
    FoundBy,
    ModelReference,
    StrategyRecord,
    ZooModel,
    load_strategy,
    operator_records,
    save_strategy,
)
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from soaprl.strategy.text import export_dot, export_text
from tests.toys import chain, diamond, split, uniform_cluster

CLUSTER = uniform_cluster(4)
ZOO = ZooModel(name="lenet", options={"width": 2})


def record_of(
    graph: OperatorGraph, strategy: Strategy, *, model: ModelReference = ZOO, time_s: float | None = 0.1
) -> StrategyRecord:
    return StrategyRecord(
        model=model,
        batch_size=graph.batch_size,
        coarsened=True,
        graph_fingerprint=graph_fingerprint(graph),
        cluster=ClusterReference(name=CLUSTER.name, fingerprint=CLUSTER.fingerprint),
        found_by=FoundBy(method="mcmc", seed=3, budget_evaluations=10, versions={"soaprl": "0"}),
        predicted_iteration_time_s=time_s,
        sharding=strategy.sharding,
        micro_batches=strategy.micro_batches,
        schedule=strategy.schedule,
        operators=operator_records(graph, strategy),
    )


def saved(path: Path) -> dict[str, Any]:
    """A file with data parallelism for a chain, and its content."""
    graph = chain()
    save_strategy(path, record_of(graph, data_parallel(graph, CLUSTER)))
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("model", [ZOO, FileModel(path="net.py", factory="make", sha256="ab" * 32)])
def test_a_strategy_survives_its_file(tmp_path: Path, model: ModelReference) -> None:
    graph = diamond()
    strategy = data_parallel(graph, CLUSTER).replaced(1, split(graph, 1, (2, 2, 0, 1), channel=2, sample=2))
    record = record_of(graph, strategy, model=model)
    path = tmp_path / "strategy.json"
    save_strategy(path, record)
    loaded = load_strategy(path)
    assert loaded == record
    assert loaded.bind(graph, CLUSTER) == strategy


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_the_predicted_time_survives_bit_for_bit(time_s: float) -> None:
    graph = chain(num_operators=1)
    record = record_of(graph, data_parallel(graph, CLUSTER), time_s=time_s)
    again = StrategyRecord.model_validate_json(record.model_dump_json())
    assert again.predicted_iteration_time_s == time_s


def test_a_file_names_only_degrees_above_one(tmp_path: Path) -> None:
    content = saved(tmp_path / "strategy.json")
    assert (content["format"], content["version"]) == ("soaprl-strategy", 1)
    assert content["operators"]["op0"] == {"degrees": {"sample": 4}, "devices": [0, 1, 2, 3]}


def test_corrupt_json_is_an_error_with_its_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    path.write_text('{\n  "format": "soaprl-strategy",\n  oops\n}')
    with pytest.raises(StrategyError, match=r"strategy\.json: expected JSON, .* line 3, column 3"):
        load_strategy(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"cannot read strategy file .*No such file"):
        load_strategy(tmp_path / "none.json")


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StrategyError, match="expected JSON text in UTF-8"):
        load_strategy(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "chakra"}, 'expected a strategy file, JSON with "format": "soaprl-strategy"'),
        ({"version": 2}, "expected strategy file version 1, found 2"),
        ({"version": None}, "expected strategy file version 1, found None"),
        ({"batch_size": "many"}, "at batch_size: .* found 'many'"),
        ({"surprise": 1}, "at surprise: Extra inputs are not permitted"),
        ({"model": {"source": "zoo"}}, "at model.zoo.name: Field required"),
        ({"model": {"source": "moon"}}, "at model: .*'moon'"),
        ({"operators": {"op0": {"devices": ["a"]}}}, "at operators.op0.devices.0"),
    ],
)
def test_a_malformed_file_is_an_error_with_the_place(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(json.dumps({**saved(path), **change}))
    with pytest.raises(StrategyError, match=message):
        load_strategy(path)


@pytest.mark.parametrize("text", ["[]", "3", '"soaprl-strategy"', "null"])
def test_json_that_is_no_object_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(text)
    with pytest.raises(StrategyError, match="expected a strategy file"):
        load_strategy(path)


def test_the_strategy_of_another_model_is_an_error_that_names_operators() -> None:
    graph = chain(num_operators=5)
    record = record_of(graph, data_parallel(graph, CLUSTER))
    with pytest.raises(StrategyError) as error:
        record.bind(diamond(), CLUSTER)
    message = str(error.value)
    assert "another model than 'diamond'" in message
    assert "the strategy lacks operators 'top', 'left', 'right' and 1 more" in message
    assert "the model lacks operators 'op0', 'op1', 'op2' and 2 more" in message


def test_the_strategy_for_another_batch_is_an_error_that_names_both() -> None:
    graph = chain(sample=4)
    record = record_of(graph, data_parallel(graph, CLUSTER))
    with pytest.raises(StrategyError, match=r"\(batch 4\), found \w{12} \(batch 8\)"):
        record.bind(chain(sample=8), CLUSTER)


def rebound(record: StrategyRecord, **operator: object) -> Strategy:
    """The record bound after replacing what it holds for the first operator."""
    changed = {**record.operators, "op0": {**record.operators["op0"].model_dump(), **operator}}
    content = {**record.model_dump(), "operators": changed}
    return StrategyRecord.model_validate(content).bind(chain(), CLUSTER)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ({"devices": (0, 1, 2, 9)}, "'op0': expected device ids from 0 to 3, found 9 for task 3"),
        ({"devices": (0, 1)}, "'op0': expected one device for each of its 4 tasks .* found 2"),
        ({"degrees": {"sample": 2}}, "'op0': expected one device for each of its 2 tasks .* found 4"),
        ({"degrees": {"sample": 5}, "devices": (0,) * 5}, "factor 'sample': expected a degree from 1 to 4"),
        ({"degrees": {"depth": 4}}, "among channel, in_channel, sample, found one for 'depth'"),
    ],
)
def test_an_illegal_operator_in_a_file_is_an_error(operator: dict[str, object], message: str) -> None:
    graph = chain()
    record = record_of(graph, data_parallel(graph, CLUSTER))
    assert rebound(record) == data_parallel(graph, CLUSTER)
    with pytest.raises(StrategyError, match=message):
        rebound(record, **operator)


def test_a_strategy_can_be_bound_to_another_cluster_that_has_its_devices() -> None:
    graph = chain()
    strategy = data_parallel(graph, uniform_cluster(2))
    record = record_of(graph, strategy)
    assert record.bind(graph, uniform_cluster(8)) == strategy


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    graph = chain()
    record = record_of(graph, data_parallel(graph, CLUSTER))
    with pytest.raises(OutputError, match="cannot write"):
        save_strategy(tmp_path / "missing" / "strategy.json", record)
    assert list(tmp_path.iterdir()) == []


def test_operators_in_a_file_are_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    saved(path)
    lines = [line for line in path.read_text().splitlines() if '"op' in line and "devices" in line]
    assert len(lines) == 3


def test_unsplit_operators_have_no_degrees_in_the_file() -> None:
    graph = chain(num_operators=1)
    strategy = Strategy((OpConfig((1, 1, 1), (3,)),))
    assert operator_records(graph, strategy)["op0"].model_dump() == {"degrees": {}, "devices": (3,)}


@pytest.mark.parametrize("sharding", list(Sharding))
def test_sharding_survives_the_file_and_the_other_exports_name_it(tmp_path: Path, sharding: Sharding) -> None:
    graph, path = chain(), tmp_path / "strategy.json"
    strategy = replace(data_parallel(graph, CLUSTER), sharding=sharding)
    save_strategy(path, record_of(graph, strategy))
    assert load_strategy(path).bind(graph, CLUSTER) == strategy
    named = sharding is not Sharding.NONE
    assert json.loads(path.read_text()).get("sharding", "none") == sharding.value
    assert (sharding.value in export_text(graph, CLUSTER, strategy)) == named
    assert (sharding.value in export_dot(graph, CLUSTER, strategy)) == named


def test_files_of_earlier_versions_shard_nothing_and_say_nothing_of_costs(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    content = saved(path)
    assert "sharding" not in content
    del content["assumptions"]
    path.write_text(json.dumps(content))
    record = load_strategy(path)
    assert (record.sharding, record.assumptions) == (Sharding.NONE, None)
    assert record.bind(chain(), CLUSTER).sharding is Sharding.NONE


def test_an_unknown_sharding_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    content = saved(path)
    path.write_text(json.dumps({**content, "sharding": "zero4"}))
    with pytest.raises(StrategyError, match=r"at sharding: Input should be 'none', 'zero1', .* 'zero4'"):
        load_strategy(path)


def test_replacing_a_configuration_keeps_the_sharding() -> None:
    graph = chain()
    strategy = replace(data_parallel(graph, CLUSTER), sharding=Sharding.ZERO2)
    assert strategy.replaced(0, split(graph, 0, (1,))).sharding is Sharding.ZERO2


@pytest.mark.parametrize("schedule", list(Schedule))
def test_micro_batches_and_stages_survive_the_file(tmp_path: Path, schedule: Schedule) -> None:
    graph, path = chain(num_operators=3), tmp_path / "strategy.json"
    stages = () if schedule is Schedule.NONE else (0, 0, 1)
    strategy = replace(
        data_parallel(graph, uniform_cluster(2)), micro_batches=2, schedule=schedule, stages=stages
    )
    save_strategy(path, record_of(graph, strategy))
    assert load_strategy(path).bind(graph, CLUSTER) == strategy
    assert json.loads(path.read_text())["micro_batches"] == 2
    order = "in no order" if schedule is Schedule.NONE else f"{schedule.value} over 2 stages"
    assert f"2 micro-batches, {order}" in export_text(graph, CLUSTER, strategy)
    assert f"2 x {schedule.value}" in export_dot(graph, CLUSTER, strategy)


def test_a_file_without_micro_batches_is_what_earlier_versions_wrote(tmp_path: Path) -> None:
    content = saved(tmp_path / "strategy.json")
    assert not {"micro_batches", "schedule"} & content.keys()
    assert all("stage" not in row for row in content["operators"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batches": 3}, "expected a number of micro-batches that divides the batch of 4, found 3"),
        (
            {"micro_batches": 2, "schedule": "zigzag"},
            "at schedule: Input should be 'none', 'gpipe' or '1f1b'",
        ),
    ],
)
def test_micro_batches_of_a_file_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(json.dumps({**saved(path), **change}))
    with pytest.raises(StrategyError, match=message):
        load_strategy(path).bind(chain(), CLUSTER)


def test_operators_of_which_some_have_a_stage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    content = {**saved(path), "micro_batches": 2, "schedule": "gpipe"}
    next(iter(content["operators"].values()))["stage"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(StrategyError, match="one for each operator, found 1"):
        load_strategy(path).bind(chain(), CLUSTER)
