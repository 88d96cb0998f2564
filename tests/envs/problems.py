"""Small problems for the tests of environments."""

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.problem import Problem
from tests.toys import ToyBuilder, chain, node_cluster


def problem_of(graph: OperatorGraph, cluster: Cluster) -> Problem:
    """A problem with times from the devices' data sheets."""
    return Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())


def branching(*, sample: int = 64, channel: int = 256) -> OperatorGraph:
    """Two branches of linear layers, halos, a tied weight and a loss."""
    builder = ToyBuilder(sample=sample)
    x = builder.input("x", channel=channel)
    weight = builder.parameter("shared.weight", channel, channel)
    top = builder.linear("top", x, channel, weight=weight)
    left = builder.window("left", builder.linear("left_linear", top, channel))
    right = builder.linear("right", top, channel, weight=weight)
    builder.mean("loss", builder.add("join", left, right))
    return builder.build("branching")


def preset_problem(name: str = "p100-2x2") -> Problem:
    """The branching graph on a preset cluster."""
    return problem_of(branching(), cluster_from_name(name))


def chain_problem() -> Problem:
    """Three linear operators on two nodes of two devices."""
    return problem_of(chain(sample=16, channel=16), node_cluster(2, 2))
