"""Simulates one of each class of replicas instead of all: exact, for clusters of thousands of devices."""

from soaprl.simulator.folding.fold import FoldedProblem, fold
from soaprl.simulator.folding.replicas import Refusal
from soaprl.simulator.folding.results import (
    FoldedResult,
    SymmetrySimulator,
    evaluate_by_symmetry,
    evaluate_folded,
    simulate_by_symmetry,
    simulate_folded,
)

__all__ = [
    "FoldedProblem",
    "FoldedResult",
    "Refusal",
    "SymmetrySimulator",
    "evaluate_by_symmetry",
    "evaluate_folded",
    "fold",
    "simulate_by_symmetry",
    "simulate_folded",
]
