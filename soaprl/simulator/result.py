"""Full simulation: everything there is to know about one iteration under one strategy."""

from dataclasses import dataclass

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.errors import SimulationError
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.engine import Engine, Evaluation
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.memory import memory_breakdown
from soaprl.simulator.problem import Problem
from soaprl.simulator.state import ACTIVATION_BYTES, GRADIENT_BYTES, SYNC_BYTES
from soaprl.simulator.timeline import (
    Occupations,
    Timeline,
    critical_path,
    dependencies,
    message_work,
    occupations,
    task_ids,
    timeline,
)
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Peak memory of each device and what it consists of; each array has the shape [devices].

    Attributes:
        parameters_bytes: Parameter shards.
        gradients_bytes: Their gradients.
        optimizer_bytes: Their optimizer state.
        activations_bytes: Activations, their gradients, and what tasks keep, at the peak.
        communication_bytes: Received and sent pieces that nothing keeps, at the peak.
    """

    parameters_bytes: IntArray
    gradients_bytes: IntArray
    optimizer_bytes: IntArray
    activations_bytes: IntArray
    communication_bytes: IntArray

    @property
    def peak_bytes(self) -> IntArray:
        """The sum."""
        held = self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes
        return held + self.activations_bytes + self.communication_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """One simulated iteration.

    Attributes:
        problem: What was simulated.
        strategy: Under which strategy.
        graph: The operators that `tasks` numbers: with micro-batches a copy for each of them
            (`soaprl.graph.repeat`), otherwise those of the problem.
        iteration_time_s: Seconds of the iteration.
        feasible: Whether the peak of every device fits in its memory.
        tasks: When each task ran.
        critical_path: Indices of tasks, first to last; see `soaprl.simulator.timeline.critical_path`.
        occupations: When each link was busy with which task.
        device_busy_s: Shape [devices]; seconds that tasks and updates take.
        device_message_s: Shape [devices]; seconds that messages take of its processor
            (`soaprl.cluster.cluster.Overheads`).
        link_busy_s: Shape [links].
        link_bytes: Shape [links]; bytes that crossed each link.
        activation_bytes: Bytes of activations sent.
        gradient_bytes: Bytes of gradients of activations sent.
        synchronization_bytes: Bytes sent to sum gradients of parameters.
        memory: Peak memory by device.
    """

    problem: Problem
    strategy: Strategy
    graph: OperatorGraph
    iteration_time_s: float
    feasible: bool
    tasks: Timeline
    critical_path: IntArray
    occupations: Occupations
    device_busy_s: FloatArray
    device_message_s: FloatArray
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

    @property
    def critical_path_names(self) -> tuple[str, ...]:
        """The critical path for people."""
        return tuple(self.tasks.name(task, self.graph) for task in self.critical_path.tolist())


def simulate(problem: Problem, strategy: Strategy, *, simulator: Simulator | None = None) -> SimulationResult:
    """Simulates one iteration of `problem` under `strategy`.

    Args:
        problem: The model, the cluster, the costs.
        strategy: One configuration for each operator.
        simulator: A simulator of the same problem, to use what it has computed already.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
    """
    simulator = Simulator(problem) if simulator is None else simulator
    if simulator.problem != problem:
        raise SimulationError(
            f"expected a simulator of {problem.graph.name!r} on {problem.cluster.name!r}, found another"
            " one. Leave `simulator` out, or make one of this problem."
        )
    evaluation = simulator.evaluate(strategy)
    return describe(problem, simulator.engine, strategy, evaluation)


def describe(
    problem: Problem, engine: Engine, strategy: Strategy, evaluation: Evaluation
) -> SimulationResult:
    """Everything about `strategy`, which is the one at hand in `engine` and just simulated."""
    ids = task_ids(engine)
    tasks = timeline(engine, ids)
    used, taken = occupations(engine, ids, tasks), message_work(engine, ids, tasks)
    bandwidth = engine.tables.link_bandwidth_bytes_per_s
    link_busy_s = np.asarray(np.bincount(used.link, used.busy_s, len(bandwidth)), np.float64)
    totals = engine.graph.work.totals
    parts = memory_breakdown(engine.graph.work, problem.options.state_per_parameter_byte)
    return SimulationResult(
        problem=problem,
        strategy=strategy,
        graph=engine.problem.graph,
        iteration_time_s=evaluation.iteration_time_s,
        feasible=evaluation.feasible,
        tasks=tasks,
        critical_path=critical_path(tasks, dependencies(engine, ids), used, taken, engine.tables),
        occupations=used,
        device_busy_s=_device_busy(tasks, problem.cluster.num_devices),
        device_message_s=np.asarray(
            np.bincount(taken.device, taken.time_s, problem.cluster.num_devices), np.float64
        ),
        link_busy_s=link_busy_s,
        link_bytes=link_busy_s * bandwidth,
        activation_bytes=int(totals[ACTIVATION_BYTES]),
        gradient_bytes=int(totals[GRADIENT_BYTES]),
        synchronization_bytes=int(totals[SYNC_BYTES]),
        memory=DeviceMemory(
            parameters_bytes=parts[0],
            gradients_bytes=parts[1],
            optimizer_bytes=parts[2],
            activations_bytes=parts[3],
            communication_bytes=parts[4],
        ),
    )


def _device_busy(tasks: Timeline, num_devices: int) -> FloatArray:
    computes = (tasks.resource >= 0) & (tasks.resource < num_devices)
    time_s = tasks.finish_s[computes] - tasks.start_s[computes]
    return np.asarray(np.bincount(tasks.resource[computes], time_s, num_devices), np.float64)
