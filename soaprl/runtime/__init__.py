"""Runs operators: parts of them on local tensors, and whole split graphs in one process."""

from soaprl.runtime.local import run_part
from soaprl.runtime.reference import run_constants, run_graph, run_operator

__all__ = ["run_constants", "run_graph", "run_operator", "run_part"]
