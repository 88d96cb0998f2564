"""Configurations from cuts: how many parts along which factors, and which device each part runs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soaprl.cluster.cluster import Cluster
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator
from soaprl.strategy.strategy import OpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Inapplicable:
    """Why a way to build strategies has none for a model on a cluster: a sentence for people."""

    reason: str


class Cut(NamedTuple):
    """A factor is cut into `degree` parts; part k adds k x `stride` to a task's place among the devices."""

    degree: int
    stride: int


def placed(operator: Operator, cuts: Mapping[int, Cut], devices: Sequence[int]) -> OpConfig:
    """The configuration of `operator` with these cuts by factor index.

    The task of parts k_f along the factors f runs on ``devices[sum of k_f x stride_f]``.
    """
    whole = Cut(degree=1, stride=0)
    by_factor = [cuts.get(factor, whole) for factor in range(len(operator.factors))]
    places = np.zeros((), np.int64)
    for cut in by_factor:
        places = places[..., None] + np.arange(cut.degree) * cut.stride
    chosen = np.asarray(devices, np.int64)[places.ravel()]
    return OpConfig(tuple(cut.degree for cut in by_factor), tuple(chosen.tolist()))


def sample_cuts(operator: Operator, num_parts: int, *, stride: int = 1) -> dict[int, Cut]:
    """Cuts along the sample factors into as many parts as they allow, at most `num_parts`.

    Consecutive parts are `stride` places apart. Of several sample factors (a refined batch) all but the last
    take a divisor of what is left, so that every place up to the last one is used.
    """
    sample = [i for i, f in enumerate(operator.factors) if f.kind is FactorKind.SAMPLE and f.splittable]
    degrees: list[int] = []
    remaining = num_parts
    for position, factor in enumerate(sample):
        largest = min(operator.factors[factor].max_degree, remaining)
        if position < len(sample) - 1:
            largest = max(d for d in range(1, largest + 1) if remaining % d == 0)
        degrees.append(largest)
        remaining //= largest
    cuts: dict[int, Cut] = {}
    for factor, degree in zip(reversed(sample), reversed(degrees), strict=True):
        cuts[factor] = Cut(degree=degree, stride=stride)
        stride *= degree
    return cuts


def by_sample(operator: Operator, devices: Sequence[int]) -> OpConfig:
    """`operator` cut by sample over `devices`, as far as its samples allow."""
    return placed(operator, sample_cuts(operator, len(devices)), devices)


def nodes_of(cluster: Cluster) -> tuple[tuple[int, ...], ...]:
    """The device ids of each node, in the order in which nodes first appear."""
    nodes: dict[int, list[int]] = {}
    for index, device in enumerate(cluster.devices):
        nodes.setdefault(device.node, []).append(index)
    return tuple(tuple(devices) for devices in nodes.values())
