"""Simulates training iterations: time, memory and traffic of a strategy."""

from soaprl.simulator.batch import BatchSimulator
from soaprl.simulator.book import Patterns
from soaprl.simulator.delta import DeltaSimulator
from soaprl.simulator.engine import Candidates, Evaluation
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.simulator.result import DeviceMemory, SimulationResult, simulate
from soaprl.simulator.timeline import TaskKind, Timeline
from soaprl.simulator.trace import write_trace
from soaprl.simulator.trial import Rows, Scale

__all__ = [
    "BatchSimulator",
    "Candidates",
    "DeltaSimulator",
    "DeviceMemory",
    "Evaluation",
    "Patterns",
    "Problem",
    "Rows",
    "Scale",
    "SimulationOptions",
    "SimulationResult",
    "Simulator",
    "TaskKind",
    "Timeline",
    "simulate",
    "write_trace",
]
