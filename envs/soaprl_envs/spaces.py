"""How large observations and actions are: problems of all sizes are padded to one."""

from dataclasses import dataclass

from soaprl.errors import SimulationError
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import graph_index
from soaprl_envs.choices import choices
from soaprl_envs.devices import num_vertices

DEFAULT_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceLimits:
    """The largest problem that fits.

    Attributes:
        operators: Operators of a graph.
        edges: Edges of a graph.
        candidates: Candidates of an operator; more are not enumerated (but `MIN_CANDIDATES` at least are).
        vertices: Vertices of a cluster (`soaprl_envs.devices`).
    """

    operators: int
    edges: int
    candidates: int = DEFAULT_CANDIDATES
    vertices: int = 64

    def check(self, name: str, problem: Problem) -> None:
        """Raises `SimulationError` unless a problem's graph and cluster fit."""
        if num_vertices(problem.cluster) > self.vertices:
            raise SimulationError(
                f"problem {name!r}: its cluster has {num_vertices(problem.cluster)} vertices, more than the"
                f" {self.vertices} that observations have room for: raise the limits."
            )
        operators, edges = len(problem.graph.operators), len(graph_index(problem.graph).edges)
        if operators > self.operators or edges > self.edges:
            raise SimulationError(
                f"problem {name!r} has {operators} operators and {edges} edges, more than the"
                f" {self.operators} and {self.edges} that observations have room for: raise the limits of the"
                " environment or of the suite."
            )


def limits_for(problems: list[Problem], *, candidates: int = DEFAULT_CANDIDATES) -> SpaceLimits:
    """The tightest limits that all of these problems fit in, with at most `candidates` an operator."""
    return SpaceLimits(
        operators=max(len(problem.graph.operators) for problem in problems),
        edges=max(1, *(len(graph_index(problem.graph).edges) for problem in problems)),
        candidates=max(choices(p, max_candidates=candidates).num_candidates for p in problems),
        vertices=max(num_vertices(problem.cluster) for problem in problems),
    )
