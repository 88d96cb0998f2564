"""Simulates strategies by symmetry: folded where that is possible, otherwise device by device."""

from dataclasses import dataclass

import numpy as np

from soaprl.cluster.cluster import MAX_TABLE_DEVICES
from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.errors import SimulationError
from soaprl.simulator.engine import Evaluation
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.folding.fold import FoldedProblem, fold
from soaprl.simulator.folding.replicas import Refusal
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import DeviceMemory, SimulationResult, simulate
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedResult:
    """One simulated iteration, of which only the replicas that are kept were simulated.

    What is here is equal, bit for bit, to what `soaprl.simulator.simulate` says of the whole problem.

    Attributes:
        problem: The whole problem.
        strategy: Its strategy.
        num_replicas: How many replicas there are.
        kept: The simulation of those that were kept, with its timeline.
        iteration_time_s: Seconds of the iteration.
        feasible: Whether the peak of every device fits in its memory.
        device_busy_s: Shape [devices].
        link_busy_s: Shape [links].
        link_bytes: Shape [links]; bytes that crossed each link.
        activation_bytes: Bytes of activations sent.
        gradient_bytes: Bytes of gradients of activations sent.
        synchronization_bytes: Bytes sent to sum gradients of parameters.
        memory: Peak memory by device.
    """

    problem: Problem
    strategy: Strategy
    num_replicas: int
    kept: SimulationResult
    iteration_time_s: float
    feasible: bool
    device_busy_s: FloatArray
    link_busy_s: FloatArray
    link_bytes: FloatArray
    activation_bytes: int
    gradient_bytes: int
    synchronization_bytes: int
    memory: DeviceMemory

    @property
    def throughput_samples_per_s(self) -> float:
        """Samples of the global batch per second."""
        return self.problem.graph.batch_size / self.iteration_time_s if self.iteration_time_s > 0 else np.inf

    @property
    def peak_memory_bytes(self) -> int:
        """Largest peak memory of any device."""
        return int(self.memory.peak_bytes.max())

    @property
    def communication_bytes(self) -> int:
        """All bytes that devices send each other."""
        return self.activation_bytes + self.gradient_bytes + self.synchronization_bytes

    @property
    def device_idle_s(self) -> FloatArray:
        """Time that each device does not compute."""
        return self.iteration_time_s - self.device_busy_s

    @property
    def link_idle_s(self) -> FloatArray:
        """Time that each link moves nothing."""
        return self.iteration_time_s - self.link_busy_s


class SymmetrySimulator:
    """Scores strategies of one problem like `Simulator`, by symmetry where that is possible.

    Once a strategy could not be folded, a search has left the symmetric ones: then, if the cluster is small
    enough, every device is simulated from there on, without looking for replicas again.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._whole: Simulator | None = None

    def evaluate(self, strategy: Strategy) -> Evaluation:
        """What `Simulator.evaluate` says of `strategy`.

        Raises:
            StrategyError: The strategy does not fit the graph or the cluster.
            SimulationError: It cannot be folded, and the cluster is too large to simulate every device.
        """
        if self._whole is None:
            folded = fold(self.problem, strategy)
            if isinstance(folded, FoldedProblem):
                return evaluate_folded(folded)
            check_unfolded(self.problem, folded)
            self._whole = Simulator(self.problem)
        return self._whole.evaluate(strategy)

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        """What `Simulator.evaluate_within` says of `strategy`; what is folded is simulated to its end."""
        if self._whole is None:
            return self.evaluate(strategy)
        return self._whole.evaluate_within(strategy, limit_s)


def evaluate_by_symmetry(problem: Problem, strategy: Strategy) -> Evaluation:
    """What `Simulator.evaluate` says of `strategy`, in time that hardly depends on the number of replicas.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
        SimulationError: It cannot be folded, and the cluster is too large to simulate every device.
    """
    return SymmetrySimulator(problem).evaluate(strategy)


def evaluate_folded(folded: FoldedProblem) -> Evaluation:
    """What `Simulator.evaluate` says of the whole problem."""
    kept = Simulator(folded.folded).evaluate(folded.folded_strategy)
    sent = kept.communication_bytes - folded.folded_synchronization_bytes
    return Evaluation(
        iteration_time_s=kept.iteration_time_s,
        peak_memory_bytes=kept.peak_memory_bytes,
        feasible=kept.feasible,
        communication_bytes=_of_all(folded, sent) + folded.synchronization_bytes,
    )


def simulate_by_symmetry(problem: Problem, strategy: Strategy) -> FoldedResult | SimulationResult:
    """One simulated iteration: folded where that is possible, otherwise of every device.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
        SimulationError: It cannot be folded, and the cluster is too large to simulate every device.
    """
    folded = fold(problem, strategy)
    if isinstance(folded, Refusal):
        check_unfolded(problem, folded)
        return simulate(problem, strategy)
    return simulate_folded(folded)


def simulate_folded(folded: FoldedProblem) -> FoldedResult:
    """What `soaprl.simulator.simulate` says of the whole problem, but for the timeline."""
    kept = simulate(folded.folded, folded.folded_strategy)
    links = folded.problem.cluster.links
    bandwidth = np.array([link.bandwidth_bytes_per_s for link in links], np.float64)
    link_busy_s, used = np.zeros(len(links), np.float64), folded.link >= 0
    link_busy_s[used] = kept.link_busy_s[folded.link[used]]
    memory, device = kept.memory, folded.device
    return FoldedResult(
        problem=folded.problem,
        strategy=folded.strategy,
        num_replicas=folded.num_replicas,
        kept=kept,
        iteration_time_s=kept.iteration_time_s,
        feasible=kept.feasible,
        device_busy_s=kept.device_busy_s[device],
        link_busy_s=link_busy_s,
        link_bytes=link_busy_s * bandwidth,
        activation_bytes=_of_all(folded, kept.activation_bytes),
        gradient_bytes=_of_all(folded, kept.gradient_bytes),
        synchronization_bytes=folded.synchronization_bytes,
        memory=DeviceMemory(
            parameters_bytes=_of_each(memory.parameters_bytes, device),
            gradients_bytes=_of_each(memory.gradients_bytes, device),
            optimizer_bytes=_of_each(memory.optimizer_bytes, device),
            activations_bytes=_of_each(memory.activations_bytes, device),
            communication_bytes=_of_each(memory.communication_bytes, device),
        ),
    )


def check_unfolded(problem: Problem, refusal: Refusal) -> None:
    """Refuses a problem that is too large to simulate every device.

    Raises:
        SimulationError: With the reason why it was not folded.
    """
    cluster = problem.cluster
    if cluster.num_devices > MAX_TABLE_DEVICES:
        raise SimulationError(
            f"cluster {cluster.name!r}: {cluster.num_devices} devices, more than the {MAX_TABLE_DEVICES} that"
            " can be simulated one by one, and the strategy does not repeat itself on groups of devices, so"
            f" that a few could stand for all: {refusal.reason}. Change the strategy, or choose a smaller"
            " cluster."
        )


def _of_all(folded: FoldedProblem, sent_bytes: int) -> int:
    """Bytes sent inside replicas: of all, from those of the replicas that are kept."""
    return sent_bytes // folded.num_kept * folded.num_replicas


def _of_each(values: IntArray, device: IntArray) -> IntArray:
    return np.asarray(values[device], np.int64)
