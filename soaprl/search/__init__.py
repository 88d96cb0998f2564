"""Finding strategies without learning: the registry of methods, and Metropolis search."""

from soaprl.search.metropolis import MetropolisSettings, metropolis, paper_settings
from soaprl.search.proposals import DeviceWeights, Proposals, ProposalSettings
from soaprl.search.registry import Method, compare, find_method, methods, search
from soaprl.search.stages import model_parallel
from soaprl.search.task import Budget, Evaluator, Progress, ProgressReport, SearchResult, SearchTask

__all__ = [
    "Budget",
    "DeviceWeights",
    "Evaluator",
    "Method",
    "MetropolisSettings",
    "Progress",
    "ProgressReport",
    "ProposalSettings",
    "Proposals",
    "SearchResult",
    "SearchTask",
    "compare",
    "find_method",
    "methods",
    "metropolis",
    "model_parallel",
    "paper_settings",
    "search",
]
