"""Exhaustive search with lower bounds: the optimum of small problems, and the proof that it is one."""

from soaprl.search.exhaustive.method import (
    ExhaustiveOutcome,
    ExhaustiveSettings,
    Proof,
    prove_optimum,
    search_exhaustive,
)
from soaprl.search.exhaustive.space import SpaceSettings, full_space

__all__ = [
    "ExhaustiveOutcome",
    "ExhaustiveSettings",
    "Proof",
    "SpaceSettings",
    "full_space",
    "prove_optimum",
    "search_exhaustive",
]
