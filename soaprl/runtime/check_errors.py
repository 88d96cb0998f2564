"""What the checker says when it finds a mistake: rank, step, operator, and what was expected instead."""

from soaprl.errors import ProgramError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.program import Step
from soaprl.runtime.program_text import step_text


def wrong_step(graph: OperatorGraph, rank: int, index: int, step: Step, problem: str) -> ProgramError:
    """The error for a step.

    Args:
        graph: The graph of the program.
        rank: Whose step it is.
        index: Its place in the rank's program.
        step: The step.
        problem: What was expected, and what was found.
    """
    text = step_text(step, graph)
    shown = text if len(text) <= 120 else f"{text[:117]}..."
    where = f"program of {graph.name!r}, rank {rank}, step {index} ({shown})"
    return ProgramError(f"{where}: {problem}; compile the strategy again")


def wrong_rank(graph: OperatorGraph, rank: int, problem: str) -> ProgramError:
    """The error for a rank's program as a whole."""
    return ProgramError(f"program of {graph.name!r}, rank {rank}: {problem}; compile the strategy again")


def names(graph: OperatorGraph, tasks: set[tuple[int, int]]) -> str:
    """Tasks for people, at most three."""
    shown = ", ".join(f"{graph.operators[o].name!r}[{p}]" for o, p in sorted(tasks)[:3])
    return shown + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
