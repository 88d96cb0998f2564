from dataclasses import replace

import numpy as np
import pytest
from soaprl_envs.problems import FixedProblems, NamedProblems, ProblemSpec, build_problem
from soaprl_envs.problems.captured import zoo_graph
from soaprl_envs.problems.clusters import RANDOM_KINDS, find_cluster, random_cluster, scaled_cluster
from soaprl_envs.problems.specs import spec_from_json
from soaprl_envs.problems.synthetic import synthetic_graph

from soaprl.cluster.presets import cluster_from_name
from soaprl.errors import ClusterError, GraphError, SimulationError, UnknownNameError
from soaprl.graph.files import graph_fingerprint, save_graph
from soaprl.graph.zoo import zoo_models
from soaprl.simulator import simulate
from soaprl.strategy.baselines import data_parallel
from tests.envs.problems import branching, chain_problem


@pytest.mark.parametrize("seed", range(12))
def test_synthetic_models_are_drawn_from_their_seed_and_can_be_simulated(seed):
    graph = synthetic_graph(seed, 64, max_operators=24)
    assert graph == synthetic_graph(seed, 64, max_operators=24)
    assert 3 <= len(graph.operators) <= 30
    assert graph.num_parameters > 0
    problem = build_problem(ProblemSpec(model=f"synthetic-{seed}", cluster="p100-2x2", max_operators=24))
    result = simulate(problem, data_parallel(problem.graph, problem.cluster))
    assert result.iteration_time_s > 0


def test_a_synthetic_model_has_the_same_sizes_at_any_batch():
    for seed in range(8):
        one, other = (synthetic_graph(seed, batch, max_operators=24) for batch in (32, 96))
        assert one.num_parameters == other.num_parameters
        assert [o.extents[1:] for o in one.operators] == [o.extents[1:] for o in other.operators]


def test_all_shapes_of_synthetic_models_are_drawn():
    graphs = [synthetic_graph(seed, 8, max_operators=32) for seed in range(40)]
    kinds = [{operator.kind for operator in graph.operators} for graph in graphs]
    assert any("conv1d" in found and "embedding" not in found for found in kinds)
    assert any("embedding" in found for found in kinds)
    readers = [sum(len(o.parameters) for o in g.operators) - len({a.tensor for o in g.operators
                for a in o.parameters}) for g in graphs]  # fmt: skip
    assert max(readers) > 0  # tied weights


def test_random_clusters_follow_from_their_seed_and_have_held_out_nothing():
    for seed in range(30):
        cluster = random_cluster(seed)
        assert cluster.fingerprint == random_cluster(seed).fingerprint
        assert 2 <= cluster.num_devices <= 32
        assert cluster.device_types[0].name.split("-")[0] in RANDOM_KINDS
        types = {device.type for device in cluster.devices}
        assert types == set(range(len(cluster.device_types)))
    assert len({random_cluster(seed).fingerprint for seed in range(30)}) == 30
    assert any(len(random_cluster(seed).device_types) == 2 for seed in range(30))


def test_scaling_changes_bandwidths_and_nothing_else():
    cluster = cluster_from_name("p100-2x2")
    slower = scaled_cluster(cluster, 0.5)
    for link, before in zip(slower.links, cluster.links, strict=True):
        assert link.bandwidth_bytes_per_s == before.bandwidth_bytes_per_s / 2
        assert link.latency_s == before.latency_s
    assert slower.fingerprint != cluster.fingerprint
    assert find_cluster("p100-2x2", bandwidth=0.5).fingerprint == slower.fingerprint
    with pytest.raises(ClusterError, match="above 0"):
        scaled_cluster(cluster, 0.0)


def test_a_zoo_model_is_captured_once_and_then_loaded(tmp_path):
    first = zoo_graph("lenet", 8, {}, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    assert zoo_graph("lenet", 8, {}, folder=tmp_path) == first
    # What is on disk is what is used.
    save_graph(replace(first, name="kept"), path)
    assert zoo_graph("lenet", 8, {}, folder=tmp_path).name == "kept"
    path.write_bytes(b"cut short")
    assert zoo_graph("lenet", 8, {}, folder=tmp_path) == first
    assert zoo_graph("lenet", 8, {"num_classes": 12}, folder=tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_to_is_not_used(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert zoo_graph("lenet", 8, {}, folder=blocked / "graphs").name == "lenet"


def test_zoo_models_get_their_batch_and_optimizer(tmp_path):
    problem = build_problem(ProblemSpec(model="lenet", cluster="p100-1x2"), folder=tmp_path)
    assert problem.graph.batch_size == 2 * zoo_models()["lenet"].batch_per_device
    assert problem.options.optimizer == zoo_models()["lenet"].optimizer
    spec = ProblemSpec(model="lenet", cluster="p100-1x2", batch_per_device=4, optimizer="adam")
    problem = build_problem(spec, folder=tmp_path)
    assert (problem.graph.batch_size, problem.options.optimizer) == (8, "adam")


def test_saved_graphs_and_users_files_are_models_too(tmp_path):
    path = tmp_path / "model.json.gz"
    save_graph(branching(), path)
    problem = build_problem(ProblemSpec(model=str(path), cluster="p100-1x2"))
    assert graph_fingerprint(problem.graph) == graph_fingerprint(branching())
    user = tmp_path / "net.py"
    user.write_text(
        "from torch import nn, zeros\n"
        "def make(batch):\n"
        "    return nn.Sequential(nn.Linear(8, 4), nn.ReLU()), (zeros(batch, 8),)\n"
    )
    problem = build_problem(ProblemSpec(model=f"{user}:make", cluster="p100-1x2", batch_per_device=3))
    assert problem.graph.batch_size == 6


def test_specs_survive_json_and_have_names_of_their_own():
    specs = [
        ProblemSpec(model="lenet", cluster="p100-1x2"),
        ProblemSpec(model="lenet", cluster="p100-1x2", bandwidth=0.5),
        ProblemSpec(model="lenet", cluster="p100-1x2", batch_per_device=4),
        ProblemSpec(model="lenet", cluster="p100-1x2", options={"num_classes": 3}),
        ProblemSpec(model="synthetic-1", cluster="random-2", max_operators=9),
        ProblemSpec(model="synthetic-1", cluster="random-2", compute_dtype="float16"),
    ]
    assert [spec_from_json(spec.as_json(), where="here") for spec in specs] == specs
    generator = NamedProblems([*specs, specs[0]])
    assert len(set(generator.names)) == len(generator.names) == len(specs)
    with pytest.raises(SimulationError, match="here: at colour"):
        spec_from_json({**specs[0].as_json(), "colour": 1}, where="here")


def test_wrong_specs_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'lenet'"):
        build_problem(ProblemSpec(model="lenett", cluster="p100-1x2"))
    with pytest.raises(GraphError, match="options are for models of the zoo"):
        build_problem(ProblemSpec(model="synthetic-1", cluster="p100-1x2", options={"width": 3}))
    with pytest.raises(GraphError, match="at least 1 sample"):
        build_problem(ProblemSpec(model="synthetic-1", cluster="p100-1x2", batch_per_device=0))
    with pytest.raises(GraphError, match="has its own batch"):
        build_problem(ProblemSpec(model="x.json", cluster="p100-1x2", batch_per_device=2))


def test_problems_made_in_code_have_names_and_no_spec():
    problems = FixedProblems([chain_problem(), chain_problem()])
    assert problems.names == ("0:chain@nodes-2x2", "1:chain@nodes-2x2")
    assert problems.spec(0) is None
    assert np.array_equal(problems.problem(1).graph.operators, chain_problem().graph.operators)
