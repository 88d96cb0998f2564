"""Clusters beyond the presets: with other bandwidths, and random ones."""

from dataclasses import replace

import numpy as np

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import load_cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.errors import ClusterError

_RANDOM = "random-"
# Newer kinds are held out: no training problem may have them.
RANDOM_KINDS = ("k80", "p100", "v100", "a100")


def find_cluster(name: str, *, bandwidth: float = 1.0) -> Cluster:
    """The cluster called `name`: a preset, a file, or ``random-SEED`` (`random_cluster`).

    Args:
        name: Which.
        bandwidth: Multiplies the bandwidth of all links.

    Raises:
        SoaprlError: There is no such cluster, or the bandwidth is not above 0.
    """
    seed = name.removeprefix(_RANDOM)
    drawn = name.startswith(_RANDOM) and seed.isdigit()
    cluster = random_cluster(int(seed)) if drawn else load_cluster(name)
    return cluster if bandwidth == 1.0 else scaled_cluster(cluster, bandwidth)


def scaled_cluster(cluster: Cluster, bandwidth: float) -> Cluster:
    """`cluster` with `bandwidth` times the bandwidth on every link."""
    if not 0 < bandwidth < float("inf"):
        raise ClusterError(
            f"cluster {cluster.name!r}: expected a bandwidth factor above 0, found {bandwidth}."
        )
    links = tuple(
        replace(
            link,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * bandwidth,
            provenance=f"{bandwidth:g} times: {link.provenance}",
        )
        for link in cluster.links
    )
    return replace(cluster, name=f"{cluster.name}x{bandwidth:g}", links=links)


def random_cluster(seed: int) -> Cluster:
    """The random cluster of `seed`: 2 to 32 devices of one of `RANDOM_KINDS`, with other speeds.

    The kind, and powers of two of nodes and devices a node, are drawn first; then compute speed, memory
    bandwidth, memory and link bandwidth are each multiplied by a log-uniform number (1/2 to 2; links 1/4 to
    4). In one cluster of four, half of the nodes have devices of half the speed.
    """
    rng = np.random.default_rng((seed, 1409))
    kind = RANDOM_KINDS[int(rng.integers(len(RANDOM_KINDS)))]
    shapes = [(n, m) for n in (1, 2, 4, 8) for m in (1, 2, 4, 8) if 2 <= n * m <= 32]
    num_nodes, per_node = shapes[int(rng.integers(len(shapes)))]
    cluster = cluster_from_name(f"{kind}-{num_nodes}x{per_node}")
    links, compute, memory, size = np.exp(rng.uniform(-1, 1, 4) * np.log([4.0, 2.0, 2.0, 2.0])).tolist()
    base = cluster.device_types[0]
    usual = replace(
        base,
        name=f"{base.name}-{seed}",
        peak_flops_per_s=tuple((dtype, peak * compute) for dtype, peak in base.peak_flops_per_s),
        memory_bytes=int(base.memory_bytes * size),
        memory_bandwidth_bytes_per_s=base.memory_bandwidth_bytes_per_s * memory,
    )
    slow = replace(
        usual,
        name=f"{base.name}-{seed}-slow",
        peak_flops_per_s=tuple((dtype, peak / 2) for dtype, peak in usual.peak_flops_per_s),
    )
    mixed = num_nodes > 1 and rng.random() < 0.25
    devices = tuple(
        replace(device, type=int(mixed and device.node >= num_nodes // 2)) for device in cluster.devices
    )
    changed = replace(
        cluster,
        name=f"{_RANDOM}{seed}",
        devices=devices,
        device_types=(usual, slow) if mixed else (usual,),
    )
    return replace(scaled_cluster(changed, links), name=f"{_RANDOM}{seed}")
