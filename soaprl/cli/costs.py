"""Measured costs on the command line: the profiles to read, and what is said of where times come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soaprl.cli.output import say
from soaprl.cluster.cluster import Cluster
from soaprl.cost.profiled import ProfiledCostModel, Sources, sources_of
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import CostError
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy


def measured_costs(
    profiles: Sequence[Path], roofline: RooflineCostModel, cluster: Cluster
) -> ProfiledCostModel:
    """The costs in the profiles; device types that they lack are named on standard error.

    Raises:
        CostError: A profile cannot be read, or none knows a device type of the cluster.
    """
    cost = ProfiledCostModel(profiles, roofline)
    names = [kind.name for kind in cluster.device_types]
    lacking = [name for name in names if name not in cost.device_types]
    files = ", ".join(map(str, profiles))
    if len(lacking) == len(names):
        known = ", ".join(cost.device_types) or "nothing"
        raise CostError(
            f"expected times of {' or '.join(names)} in {roofline.compute_dtype} in {files}, found {known}:"
            f" measure them with soaprl profile MODEL --cluster {cluster.name} --out {profiles[0]}, on a"
            " machine that has one."
        )
    for name in lacking:
        say(f"soaprl: warning: {files} has no times of {name}: they are estimated by a roofline")
    return cost


def cost_sources(problem: Problem, strategy: Strategy) -> Sources | None:
    """Where the times of a strategy's tasks come from; None where nothing is measured."""
    if not isinstance(problem.cost, ProfiledCostModel):
        return None
    return sources_of(problem.graph, problem.cluster, problem.cost, strategy)


def print_sources(sources: Sources | None) -> None:
    """Says for people where times come from."""
    if sources is not None:
        say(f"soaprl: {sources.text}")


def sources_json(sources: Sources | None) -> dict[str, Any]:
    """For JSON: the shares of compute time by source; everything is the roofline's without a profile."""
    if sources is None:
        return {"cost_sources": {"measured": 0.0, "interpolated": 0.0, "roofline": 1.0}}
    return {"cost_sources": {source: sources.share(source) for source in sources.time_s}}
