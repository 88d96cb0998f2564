"""Every model of the zoo, whole, through capture and simulation under data parallelism."""

from collections.abc import Iterator

import pytest

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import load_cluster
from soaprl.cost.optimizers import optimizer_facts
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.simulator.result import simulate
from soaprl.strategy.baselines import data_parallel

# What 16 and 80 GB do not hold: float32 parameters, gradients and two moments are 16 bytes a parameter.
TOO_BIG = {
    "p100-4x4": {"gpt2-medium", "gpt2-large", "gpt2-xl", "llama-7b"},
    "a100-1x8": {"llama-7b"},
}


def cases() -> Iterator[tuple[str, str]]:
    for name in zoo_models():
        for cluster in TOO_BIG:
            yield name, cluster


def problem_of(name: str, cluster: Cluster) -> Problem:
    model = zoo_models()[name]
    graph = capture_model(name, model.batch_per_device * cluster.num_devices)
    cost = RooflineCostModel(optimizer=optimizer_facts(model.optimizer))
    options = SimulationOptions(optimizer=model.optimizer)
    return Problem(graph=graph, cluster=cluster, cost=cost, options=options)


@pytest.mark.parametrize(("name", "cluster_name"), tuple(cases()))
def test_a_model_of_the_zoo_is_simulated_under_data_parallelism(name: str, cluster_name: str) -> None:
    problem = problem_of(name, load_cluster(cluster_name))
    num_devices = problem.cluster.num_devices
    assert not [note for note in problem.graph.notes if note.startswith("warning")]
    result = simulate(problem, data_parallel(problem.graph, problem.cluster))
    assert result.feasible == (name not in TOO_BIG[cluster_name])
    # All devices compute, and none for longer than the iteration.
    assert result.device_busy_s.min() > 0
    assert result.device_busy_s.max() <= result.iteration_time_s
    # Every device holds all float32 parameters with gradients and optimizer state; a ring all-reduce sends
    # 2 (n - 1) / n of the gradients from each of n devices.
    parameter_bytes = 4 * zoo_models()[name].num_parameters
    copies = 2 + optimizer_facts(problem.options.optimizer).num_states
    assert result.peak_memory_bytes >= copies * parameter_bytes
    assert result.synchronization_bytes == pytest.approx(2 * (num_devices - 1) * parameter_bytes, rel=1e-3)
