"""The checker: proves that a program computes what its strategy says, and that no rank waits for ever.

What is proved, and where:

- ranks agree on every shared step, each send has exactly one receive of the same pieces in the same order,
  and no rank waits for ever: `soaprl.runtime.check_shared`;
- each task runs once, on its rank, from exactly the regions that its rule names; everything read was
  written, or received and awaited, before; nothing is received and never used; every gradient goes back once,
  when it is complete: `soaprl.runtime.check_rank`;
- each pass comes where the strategy's schedule has it: `soaprl.runtime.check_rank`;
- every element of a parameter is held by the ranks that read it, reduced over exactly these if they are
  several, owned by one and updated by all, or, where state is sharded, updated by its owner, which gets its
  gradient, and gathered by all: `soaprl.runtime.check_parameters`. Where parameters are sharded, what a task
  reads has been gathered and not been released: `soaprl.runtime.check_rank`.

It shares with the compiler only the rules of the operators (which task touches what). Errors name the rank,
the step and the operator.
"""

from soaprl.errors import ProgramError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.check_parameters import check_parameters
from soaprl.runtime.check_rank import check_rank
from soaprl.runtime.check_shared import check_shared
from soaprl.runtime.layout import graph_tasks
from soaprl.runtime.micro_batches import unrolled
from soaprl.runtime.program import Program
from soaprl.runtime.program_files import check_fits
from soaprl.strategy.validation import check_strategy


def check_program(program: Program, graph: OperatorGraph, *, fingerprint: str | None = None) -> None:
    """Raises `ProgramError` unless `program` is right.

    Args:
        program: The program.
        graph: The graph it was compiled for.
        fingerprint: Of `graph`, where the caller already has it.
    """
    check_fits(program, graph, fingerprint=fingerprint)
    check_strategy(graph, program.num_ranks, program.strategy)
    for place, rank in enumerate(program.ranks):
        if rank.rank != place:
            raise ProgramError(
                f"program of {program.model!r}: expected the program of rank {place} at place {place}, found"
                f" that of rank {rank.rank}; compile the strategy again"
            )
    work = unrolled(graph, program.strategy)
    check_strategy(work.graph, program.num_ranks, work.strategy)
    tasks = graph_tasks(work.graph, work.strategy)
    check_shared(program, work.graph)
    for rank in program.ranks:
        check_rank(program, work, tasks, rank)
    check_parameters(program, work.graph, tasks)
