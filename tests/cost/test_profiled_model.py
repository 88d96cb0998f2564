import pickle
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.devices import device_type
from soaprl.cluster.files import load_cluster
from soaprl.cost.profiled import (
    Profile,
    ProfiledCostModel,
    Progress,
    Settings,
    deviations,
    measure_missing,
    plan_anchors,
    sources_of,
    update_sizes,
)
from soaprl.cost.profiled.family import family_of, shard_at
from soaprl.cost.profiled.interpolation import around, between, update_time
from soaprl.cost.profiled.plan import corners, grid
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import CostError
from soaprl.graph.factors import FactorKind
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel
from tests.cost.profiled_toys import SETTING, ClosedForm, toy_graph
from tests.toys import chain, whole_factor

CPU = device_type("cpu")
ROOFLINE = RooflineCostModel()
GRAPH = toy_graph()


def cpu_cluster(num_devices: int) -> Cluster:
    """Processes of one machine, on devices of the type that the toy setting stands for."""
    return load_cluster(f"cpu-1x{num_devices}")


def measured_into(path: Path, num_devices: int, *, rounds: int = 1, **changes: object) -> list[Progress]:
    measurer = replace(ClosedForm(), **changes)  # type: ignore[arg-type]
    heard: list[Progress] = []
    with Profile(path, create=True) as profile:
        anchors, sizes = plan_anchors(GRAPH, num_devices), update_sizes(GRAPH, num_devices)
        measure_missing(profile, measurer, GRAPH, anchors, "adam", sizes, heard.append, rounds=rounds)
    return heard


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """All of the toy graph for 4 devices."""
    path = tmp_path / "p.db"
    measured_into(path, 4)
    return path


def test_a_measured_shard_has_its_measured_time(profile: Path) -> None:
    model = ProfiledCostModel([profile], ROOFLINE)
    for extents in ((64, 32, 32), (32, 32, 16), (16, 32, 32)):
        operator = GRAPH.operators[1]
        time = model.task_time(GRAPH, operator, shard_at(GRAPH, operator, extents), CPU)
        # Closed form of the measurer: 1 ns an index forward, 2 ns backward.
        assert (time.forward_s, time.backward_s, time.measured) == (
            1e-9 * prod(extents),
            2e-9 * prod(extents),
            True,
        )


def test_between_measured_shards_the_ratio_to_the_roofline_is_interpolated(profile: Path) -> None:
    model, operator = ProfiledCostModel([profile], ROOFLINE), GRAPH.operators[1]

    def ratio(extents: tuple[int, int, int]) -> float:
        shard = shard_at(GRAPH, operator, extents)
        measured = model.task_time(GRAPH, operator, shard, CPU).forward_s
        return measured / ROOFLINE.task_time(GRAPH, operator, shard, CPU).forward_s

    # 45 is close to the middle of 32 and 64 on a logarithmic scale.
    low, high = ratio((32, 32, 32)), ratio((64, 32, 32))
    assert low != pytest.approx(high, rel=0.05), "there is something to interpolate"
    assert ratio((45, 32, 32)) == pytest.approx(sqrt(low * high), rel=0.01)
    shard = shard_at(GRAPH, operator, (45, 32, 32))
    assert model.source(GRAPH, operator, shard, CPU) == "interpolated"
    assert model.task_time(GRAPH, operator, shard, CPU).measured


def test_outside_of_what_was_measured_the_nearest_ratio_scales_the_roofline_and_is_marked(
    profile: Path,
) -> None:
    model, operator = ProfiledCostModel([profile], ROOFLINE), GRAPH.operators[1]
    shard = shard_at(GRAPH, operator, (1, 32, 32))
    time = model.task_time(GRAPH, operator, shard, CPU)
    assert model.source(GRAPH, operator, shard, CPU) == "roofline"
    assert not time.measured
    assert time.forward_s != ROOFLINE.task_time(GRAPH, operator, shard, CPU).forward_s


def test_a_device_type_without_measurements_has_the_rooflines_times(profile: Path) -> None:
    model, operator = ProfiledCostModel([profile], ROOFLINE), GRAPH.operators[1]
    shard = shard_at(GRAPH, operator, (64, 32, 32))
    p100 = device_type("p100")
    assert model.task_time(GRAPH, operator, shard, p100) == ROOFLINE.task_time(GRAPH, operator, shard, p100)
    assert model.source(GRAPH, operator, shard, p100) == "roofline"


def test_what_cannot_be_measured_is_scaled_like_the_rest_and_not_tried_again(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    graph = replace(GRAPH, operators=(*GRAPH.operators[:2], replace(GRAPH.operators[2], kind="odd")))
    with Profile(path, create=True) as profile:
        measurer = ClosedForm(refuses=("odd",), log=log)
        anchors = plan_anchors(graph, 2)
        assert measure_missing(profile, measurer, graph, anchors, "adam", [], lambda p: None) == len(anchors)
        assert measure_missing(profile, measurer, graph, anchors, "adam", [], lambda p: None) == 0
        refused = [row for row in profile.all(SETTING) if row.times is None]
    assert {row.reason for row in refused} == {"no such kernel"}
    model, odd = ProfiledCostModel([path], ROOFLINE), graph.operators[2]
    shard = shard_at(graph, odd, (64, 32, 32))
    assert model.source(graph, odd, shard, CPU) == "roofline"
    plain = ROOFLINE.task_time(graph, odd, shard, CPU).forward_s
    others = []
    for anchor in anchors:
        operator = graph.operators[anchor.operator]
        if operator.kind != "odd":
            alike = shard_at(graph, operator, anchor.extents)
            others.append(
                1e-9 * prod(anchor.extents) / ROOFLINE.task_time(graph, operator, alike, CPU).forward_s
            )
    assert min(others) <= model.task_time(graph, odd, shard, CPU).forward_s / plain <= max(others)


def test_a_measurer_measures_what_is_asked_for_once_and_the_file_knows_it_afterwards(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    model = ProfiledCostModel([path], ROOFLINE, measurers=[ClosedForm(log=log)])
    operator = GRAPH.operators[1]
    for extents in ((64, 32, 32), (64, 32, 32), (45, 32, 32)):
        model.task_time(GRAPH, operator, shard_at(GRAPH, operator, extents), CPU)
    # (45, 32, 32) lies between 32 and 64, and 64 is there.
    assert [line.split(" ", 1)[1] for line in log.read_text().splitlines()] == [
        "linear (64, 32, 32)",
        "linear (32, 32, 32)",
    ]
    later = ProfiledCostModel([path], ROOFLINE)
    shard = shard_at(GRAPH, operator, (45, 32, 32))
    assert later.task_time(GRAPH, operator, shard, CPU) == model.task_time(GRAPH, operator, shard, CPU)


def test_a_search_asks_for_the_same_times_in_another_process(profile: Path) -> None:
    model = ProfiledCostModel([profile], ROOFLINE)
    copied = pickle.loads(pickle.dumps(model))
    operator, shard = GRAPH.operators[1], shard_at(GRAPH, GRAPH.operators[1], (45, 32, 7))
    assert copied.name == model.name
    assert copied.task_time(GRAPH, operator, shard, CPU) == model.task_time(GRAPH, operator, shard, CPU)


def test_mixed_clusters_take_each_device_types_profile(tmp_path: Path) -> None:
    slow = replace(SETTING, device_type="cpu", device_name="slow")
    fast = replace(SETTING, device_type="p100", device_name="fast", threads=0)
    paths = tmp_path / "slow.db", tmp_path / "fast.db"
    for path, setting in zip(paths, (slow, fast), strict=True):
        measured_into(path, 2, setting=setting)
    model = ProfiledCostModel(paths, ROOFLINE)
    assert model.device_types == ("cpu", "p100")
    assert (model.setting("cpu"), model.setting("p100"), model.setting("k80")) == (slow, fast, None)
    assert "slow" in model.name
    assert "fast" in model.name


def test_several_settings_of_a_type_are_told_apart_by_threads(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    measured_into(path, 2)
    measured_into(path, 2, setting=replace(SETTING, threads=2))
    assert ProfiledCostModel([path], ROOFLINE).setting("cpu") == replace(SETTING, threads=2)
    one = ProfiledCostModel([path], ROOFLINE, settings=Settings(threads=1))
    assert one.setting("cpu") == SETTING


def test_times_in_another_dtype_are_not_taken(profile: Path) -> None:
    model = ProfiledCostModel([profile], RooflineCostModel(compute_dtype="bfloat16"))
    assert model.device_types == ()


def test_no_profile_is_an_error() -> None:
    with pytest.raises(CostError, match="at least one profile"):
        ProfiledCostModel([], ROOFLINE)


def test_a_session_reports_how_far_it_is_and_measures_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    first, again = measured_into(path, 4), measured_into(path, 4)
    total = len(plan_anchors(GRAPH, 4)) + len(update_sizes(GRAPH, 4))
    assert [p.done for p in first] == [*range(total), total]
    assert (first[-1].measured, first[-1].total) == (total, total)
    assert [(p.done, p.measured) for p in again] == [(total, 0)]


def test_rounds_measure_everything_before_anything_again_and_go_on(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    total = len(plan_anchors(GRAPH, 4)) + len(update_sizes(GRAPH, 4))
    first, more = measured_into(path, 4), measured_into(path, 4, rounds=3)
    assert first[-1].measured == total
    assert [p.done for p in more] == [*range(total, 3 * total), 3 * total]
    names = [p.name for p in more]
    assert names[:total] == names[total : 2 * total], "the order is the same in every round"
    assert (more[-1].measured, more[-1].total) == (2 * total, 3 * total)
    with Profile(path) as profile:
        assert {row.rounds for row in profile.all(SETTING)} == {3}
    assert measured_into(path, 4, rounds=2)[-1].measured == 0


def test_what_is_planned_covers_every_strategy_with_powers_of_two(profile: Path) -> None:
    model, cluster = ProfiledCostModel([profile], ROOFLINE), cpu_cluster(4)
    sources = sources_of(GRAPH, cluster, model, data_parallel(GRAPH, cluster))
    assert sources.tasks == {"measured": 3 * 4, "interpolated": 0, "roofline": 0}
    assert sources.share("measured") == 1.0
    assert sources.text == "compute time: 100% measured, 0% interpolated, 0% roofline"


def test_three_devices_lie_between_two_and_four(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    measured_into(path, 3)
    cluster = cpu_cluster(3)
    sources = sources_of(GRAPH, cluster, ProfiledCostModel([path], ROOFLINE), data_parallel(GRAPH, cluster))
    assert sources.tasks == {"measured": 0, "interpolated": 3 * 3, "roofline": 0}


def test_a_simulator_uses_measured_times(profile: Path) -> None:
    cluster = cpu_cluster(1)
    cost = ProfiledCostModel([profile], ROOFLINE)
    problem = Problem(graph=GRAPH, cluster=cluster, cost=cost)
    found = Simulator(problem).evaluate(data_parallel(GRAPH, cluster)).iteration_time_s
    # Three operators of 64 * 32 * 32 indices, 3 ns each, and the update of three matrices of 32 x 32.
    update_s = 3 * cost.update_time(4 * 32 * 32, CPU)
    assert found == pytest.approx(3 * 3e-9 * 64 * 32 * 32 + update_s, rel=1e-6)
    assert update_s == pytest.approx(3 * 1e-9 * 4 * 32 * 32)


def test_deviations_are_sorted_by_how_far_they_are_either_way(profile: Path) -> None:
    anchors = plan_anchors(GRAPH, 4)
    with Profile(profile) as opened:
        found = list(deviations(opened.all(SETTING), GRAPH, anchors, ROOFLINE, CPU))
    assert len(found) == len(anchors)
    distances = [max(d.ratio, 1 / d.ratio) for d in found]
    assert distances == sorted(distances, reverse=True)
    first = found[0]
    assert first.measured_s == pytest.approx(3e-9 * prod(first.extents))


# Families and the plan.


def test_layers_that_repeat_and_models_of_another_batch_share_measurements() -> None:
    larger = chain(num_operators=3, sample=128, channel=32)
    families = [family_of(GRAPH, op) for op in GRAPH.operators]
    assert families[1] == families[2]
    # The first reads the model's input, for which no gradient is computed: less work.
    assert families[0] != families[1]
    assert [family_of(larger, op) for op in larger.operators] == families


def test_another_width_is_another_family() -> None:
    wider = chain(num_operators=3, sample=64, channel=64)
    assert family_of(wider, wider.operators[1]) != family_of(GRAPH, GRAPH.operators[1])


@given(st.integers(1, 300), st.data())
def test_the_grid_has_the_whole_and_the_smallest_part(extent: int, data: st.DataObject) -> None:
    factor = whole_factor("f", extent, FactorKind.SAMPLE)
    sizes = grid(factor)
    assert sizes[0] == 1
    assert sizes[-1] == extent
    size = data.draw(st.integers(1, extent))
    operator = replace(GRAPH.operators[0], factors=(factor,))
    (near,) = corners(operator, (size,))
    assert near[0] <= size <= near[-1]
    # No part is more than about twice another.
    assert near[-1] <= 2 * near[0]


def test_plans_grow_with_devices_and_have_no_shard_twice() -> None:
    plans = [plan_anchors(GRAPH, n) for n in (1, 2, 4, 8)]
    assert [len(p) for p in plans] == sorted(len(p) for p in plans)
    for plan in plans:
        keys = {(a.family, a.extents) for a in plan}
        assert len(keys) == len(plan)
    # Two families of three factors each: 1 way to cut into 1, and 3 into 2.
    assert [len(p) for p in plans[:2]] == [2 * 1, 2 * (1 + 3)]


# Interpolation.


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=4, max_size=4), st.integers(8, 16))
def test_interpolation_is_exact_at_corners_and_never_leaves_their_range(
    values: list[tuple[float, float]], extent: int
) -> None:
    cell = [(8, 16), (3, 6)]
    ratios = dict(zip([(8, 3), (8, 6), (16, 3), (16, 6)], values, strict=True))
    for corner, value in ratios.items():
        assert between(cell, corner, ratios) == pytest.approx(value)
    for found in (between(cell, (extent, 4), ratios), around((extent, 4), ratios)):
        for k in range(2):
            low, high = min(v[k] for v in values), max(v[k] for v in values)
            assert low - 1e-9 <= found[k] <= high + 1e-9


def test_updates_are_linear_between_measured_sizes_and_grow_with_bytes_above() -> None:
    sizes = {1000: 1e-6, 3000: 2e-6}
    assert update_time(sizes, 1) == update_time(sizes, 1000) == 1e-6
    assert update_time(sizes, 2000) == pytest.approx(1.5e-6)
    assert update_time(sizes, 30_000) == pytest.approx(2e-5)
