"""Runs strategies: programs for ranks, the executors that run them, and training with them."""

from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.local import run_part
from soaprl.runtime.logical import LogicalRanks
from soaprl.runtime.program import CompileOptions, Program, RankProgram
from soaprl.runtime.program_files import load_program, save_program
from soaprl.runtime.program_text import program_text, totals_text
from soaprl.runtime.reference import run_constants, run_graph, run_operator
from soaprl.runtime.training import LogicalRuntime, graph_of_model, initialize

__all__ = [
    "CompileOptions",
    "LogicalRanks",
    "LogicalRuntime",
    "Program",
    "RankProgram",
    "check_program",
    "compile_program",
    "graph_of_model",
    "initialize",
    "load_program",
    "program_text",
    "run_constants",
    "run_graph",
    "run_operator",
    "run_part",
    "save_program",
    "totals_text",
]
