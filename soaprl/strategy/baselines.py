"""Strategies that follow from the graph and the cluster alone, without costs."""

from soaprl.cluster.cluster import Cluster
from soaprl.errors import StrategyError
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.strategy import OpConfig, Strategy


def unsplit(operator: Operator, device: int) -> OpConfig:
    """The configuration that runs the whole `operator` as one task on `device`."""
    return OpConfig((1,) * len(operator.factors), (device,))


def single_device(graph: OperatorGraph, cluster: Cluster, *, device: int = 0) -> Strategy:
    """Nothing is split, and everything runs on `device`."""
    if not 0 <= device < cluster.num_devices:
        raise StrategyError(
            f"cluster {cluster.name!r}: expected a device id from 0 to {cluster.num_devices - 1},"
            f" found {device}."
        )
    return Strategy(tuple(unsplit(operator, device) for operator in graph.operators))


def data_parallel(graph: OperatorGraph, cluster: Cluster) -> Strategy:
    """Every operator is split along its sample factors over all devices, part k on device k.

    An operator without a sample factor runs whole on device 0. One whose sample factors allow fewer parts
    than there are devices (a batch refined into two factors of awkward extents) uses the first devices.

    Raises:
        StrategyError: The batch is smaller than the number of devices.
    """
    if graph.batch_size < cluster.num_devices:
        raise StrategyError(
            f"batch smaller than the devices: data parallelism on the {cluster.num_devices} devices of"
            f" {cluster.name!r} needs a batch of at least {cluster.num_devices}, found {graph.batch_size} in"
            f" {graph.name!r}. Enlarge the batch or use fewer devices."
        )
    return Strategy(tuple(_sample_split(operator, cluster.num_devices) for operator in graph.operators))


def _sample_split(operator: Operator, num_devices: int) -> OpConfig:
    """`operator` cut along its sample factors into as many parts as possible, at most `num_devices`."""
    sample = [i for i, f in enumerate(operator.factors) if f.kind is FactorKind.SAMPLE and f.splittable]
    degrees = [1] * len(operator.factors)
    remaining = num_devices
    for position, factor in enumerate(sample):
        largest = min(operator.factors[factor].max_degree, remaining)
        # Only the last sample factor may take a degree that leaves devices over.
        last = position == len(sample) - 1
        degrees[factor] = largest if last else _largest_divisor(remaining, largest)
        remaining //= degrees[factor]
    config = OpConfig(tuple(degrees), ())
    return OpConfig(config.degrees, tuple(range(config.num_tasks)))


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(d for d in range(1, limit + 1) if number % d == 0)
