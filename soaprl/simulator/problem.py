"""What is simulated: a model, a cluster, a cost model, and how an iteration is executed."""

from dataclasses import dataclass, field

from soaprl.cluster.cluster import Cluster, Overheads
from soaprl.cost.compression import Compression, find_compression
from soaprl.cost.model import CostModel
from soaprl.cost.optimizers import optimizer_facts
from soaprl.errors import SimulationError
from soaprl.graph.operators import OperatorGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """How an iteration is executed.

    Attributes:
        optimizer: A name that `soaprl.cost.optimizers` knows; decides the bytes of optimizer state.
        paper: The paper's assumptions: transfers take bytes / bandwidth without latency, and gradients are
            synchronized by transfers to the first holder of a shard and back, not by collectives. The times
            of tasks are the cost model's affair.
        overlap_synchronization: Whether gradients are synchronized as soon as they are there; otherwise
            after the last backward task.
        gradient_compression: In which format gradients of parameters are summed over devices; a name that
            `soaprl.cost.compression` knows.
        prefetch: Where parameters are sharded: how many operators with parameters ahead they are gathered;
            see `soaprl.simulator.pacing`.
    """

    optimizer: str = "adam"
    paper: bool = False
    overlap_synchronization: bool = True
    gradient_compression: str = "none"
    prefetch: int = 4

    def __post_init__(self) -> None:
        optimizer_facts(self.optimizer)
        if self.compression.active and self.paper:
            raise SimulationError(
                f"gradient compression {self.gradient_compression!r} is for collectives, and the paper's"
                " assumptions know none: leave one of the two out."
            )
        if self.prefetch < 1:
            raise SimulationError(f"expected a prefetch of 1 or more operators, found {self.prefetch}.")

    @property
    def compression(self) -> Compression:
        """The compression of that name."""
        return find_compression(self.gradient_compression)

    @property
    def state_per_parameter_byte(self) -> int:
        """Bytes of optimizer state for each byte of a trainable parameter."""
        return optimizer_facts(self.optimizer).num_states


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One training iteration of a model on a cluster, but for the strategy.

    Attributes:
        graph: The operators.
        cluster: The devices and links.
        cost: Times of tasks.
        options: How the iteration is executed.
    """

    graph: OperatorGraph
    cluster: Cluster
    cost: CostModel
    options: SimulationOptions = field(default_factory=SimulationOptions)

    @property
    def overheads(self) -> Overheads:
        """What software takes: nothing under the paper's assumptions (A4), else what the cluster says."""
        return Overheads(collective_s=0.0) if self.options.paper else self.cluster.overheads
