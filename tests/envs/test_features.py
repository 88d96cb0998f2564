from dataclasses import replace

import numpy as np
import pytest
from soaprl_envs.choices import choices
from soaprl_envs.features import (
    CANDIDATE_COLUMNS,
    NUM_CANDIDATE,
    NUM_DEVICE,
    NUM_DEVICE_EDGE,
    NUM_EDGE,
    NUM_OPERATOR,
    problem_features,
)

from soaprl.cluster.presets import cluster_from_name
from tests.envs.problems import branching, preset_problem, problem_of


@pytest.mark.parametrize("cluster", ["p100-1x1", "p100-1x4", "p100-2x2", "k80-4x4", "h100-2x8"])
def test_features_have_their_shapes_and_are_finite_and_small(cluster):
    found = choices(problem_of(branching(sample=192), cluster_from_name(cluster)))
    features = problem_features(found)
    n, k, num_edges = found.num_operators, found.num_candidates, features.edges.shape[1]
    assert features.operators.shape == (n, NUM_OPERATOR)
    assert features.edge_features.shape == (num_edges, NUM_EDGE)
    assert features.candidates.shape == (n, k, NUM_CANDIDATE)
    assert features.devices.shape[1] == NUM_DEVICE
    assert features.device_edge_features.shape == (features.device_edges.shape[1], NUM_DEVICE_EDGE)
    for array in features:
        assert np.isfinite(array).all()
    for array in (features.operators, features.edge_features, features.devices, features.candidates):
        assert array.dtype == np.float32
        assert np.abs(array).max() <= 5
    assert (features.candidates[~features.mask] == 0).all()


def test_edges_follow_the_order():
    features = problem_features(choices(preset_problem()))
    place = np.argsort(features.order)
    assert (place[features.edges[0]] < place[features.edges[1]]).all()


def test_features_name_no_operator_model_or_device():
    problem = preset_problem()
    graph = problem.graph
    renamed = replace(
        graph,
        name="other",
        operators=tuple(replace(op, name=f"x{i}") for i, op in enumerate(graph.operators)),
        tensors=tuple(replace(t, name=f"t{i}") for i, t in enumerate(graph.tensors)),
    )
    one, other = (problem_features(choices(replace(problem, graph=g))) for g in (graph, renamed))
    for mine, theirs in zip(one, other, strict=True):
        assert (mine == theirs).all()


def test_mirrored_devices_of_a_uniform_cluster_have_equal_candidates():
    features = problem_features(choices(preset_problem("p100-1x4")))
    singles = features.candidates[0][features.candidates[0, :, CANDIDATE_COLUMNS.index("is_whole")] == 1]
    assert len(singles) == 4
    consecutive = CANDIDATE_COLUMNS.index("consecutive")
    assert (np.delete(singles, consecutive, axis=1) == np.delete(singles[:1], consecutive, axis=1)).all()


def test_times_relative_to_the_best_are_logarithms():
    found = choices(preset_problem("p100-1x4"))
    features, alone = problem_features(found), found.tables.alone
    row = features.candidates[0, :, CANDIDATE_COLUMNS.index("time_relative")]
    family = alone.family[0]
    count = alone.num_candidates[family]
    best = alone.own_s[family, :count].min()
    assert row[:count] == pytest.approx(np.log(alone.own_s[family, :count] / best), abs=1e-6)
    assert row[:count].min() == 0
