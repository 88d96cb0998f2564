"""Which configurations OptCNN's dynamic program chooses from.

On n devices an operator may have every vector of degrees over its sample, attribute and parameter factors
whose product k divides n (parts may be uneven; the slowest one counts), and its task number i runs on device
i: consecutive devices from the first on. Factors that make partial sums are not split, unless
`OptcnnSettings.reductions` is on. Operators that share parameters and have the same factors (the steps of an
unrolled recurrent model) share one configuration: they are one *variable*.
"""

from dataclasses import dataclass

from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.search.optcnn.elimination import MAX_CELLS
from soaprl.search.proposals import tied_groups
from soaprl.strategy.candidates import DegreeLimits, legal_degrees


@dataclass(frozen=True, slots=True, kw_only=True)
class OptcnnSettings:
    """The space, and how far elimination may go.

    Attributes:
        reductions: Whether factors that make partial sums may be split (not in OptCNN).
        max_cells: See `soaprl.search.optcnn.elimination`.
    """

    reductions: bool = False
    max_cells: int = MAX_CELLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Operators that share one degree vector.

    Attributes:
        operators: Their indices, ascending.
        degrees: The vectors to choose from.
    """

    operators: tuple[int, ...]
    degrees: tuple[tuple[int, ...], ...]


def degree_vectors(
    operator: Operator, num_devices: int, settings: OptcnnSettings
) -> tuple[tuple[int, ...], ...]:
    """The degree vectors of the space for one operator, in lexicographic order."""
    limits = DegreeLimits(max_tasks=num_devices, reductions=settings.reductions)
    vectors = legal_degrees(operator, limits)
    fitting = vectors[num_devices % vectors.prod(axis=1) == 0]
    return tuple(tuple(row) for row in fitting.tolist())


def variables(graph: OperatorGraph, num_devices: int, settings: OptcnnSettings) -> tuple[Variable, ...]:
    """The variables of `graph`, in the order of their first operators."""
    return tuple(
        Variable(operators=group, degrees=degree_vectors(graph.operators[group[0]], num_devices, settings))
        for group in dict.fromkeys(tied_groups(graph))
    )
