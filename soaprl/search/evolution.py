"""Evolution: a population of strategies, crossover by connected subgraphs, mutation by proposals.

A steady-state genetic algorithm (Whitley, *The GENITOR algorithm*, ICGA 1989) with tournaments (Goldberg and
Deb, FOGA 1991). The population begins with data parallelism and the experts; its other members are mutations
of those in a share of their operators. Each step makes one child:

    parents     the best of `tournament` random members, twice
    crossover   with probability `crossover`, the child is the first parent with the configurations that the
                second has on a random connected subgraph, grown from a random operator to a random size
                (`subgraph`): neighbours keep configurations that were found to go together
    mutation    a random number of proposals as `soaprl.search.proposals` draws them, applied one after
                another: at most `MUTATIONS`, at least one where there was no crossover
    survival    the child takes the place of the worst member if it is better, and if no member has its time
                (equal times are almost always equal strategies in effect)

The best member is never lost, so that the result is at least as good as the best beginning. A child must be
better than the worst member, so that the simulator may stop as soon as it certainly is not.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from soaprl.errors import SearchError
from soaprl.graph.operators import OperatorGraph
from soaprl.search.experts import starts_for
from soaprl.search.proposals import BLOCK_SIZE, Draws, Proposals, ProposalSettings
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, moved_together, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, rank
from soaprl.strategy.strategy import Strategy

METHOD = "evolution"
MUTATIONS = 4
# Streams of random numbers: mutations, other choices of a step, and the first members.
_MUTATION_STREAM, _STEP_STREAM, _MEMBER_STREAM = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """How the population lives.

    Attributes:
        population: Number of members.
        tournament: Members of whom the best becomes a parent.
        crossover: Probability that a child has two parents.
        initial_mutation: Share of the operators that the first members differ in from a start, at most.

    Populations of 16 and 32 and initial mutations of 0.05 to 0.2 were tried on RNNTC, NMT and AlexNet on
    ``p100-4x4`` with the paper's assumptions, 15,000 evaluations and two seeds: they differ by less than two
    seeds do, but for NMT, which 32 and 0.05 served best.
    """

    population: int = 32
    tournament: int = 3
    crossover: float = 0.5
    initial_mutation: float = 0.05

    def __post_init__(self) -> None:
        if self.population < 2 or self.tournament < 1:
            raise SearchError(
                "expected a population of at least 2 and tournaments of at least 1, found"
                f" {self.population} and {self.tournament}."
            )
        if not (0 <= self.crossover <= 1 and 0 <= self.initial_mutation <= 1):
            raise SearchError(
                "expected shares from 0 to 1, found crossover"
                f" {self.crossover} and initial_mutation {self.initial_mutation}."
            )


def evolution(
    task: SearchTask, start: Strategy | None = None, settings: EvolutionSettings | None = None
) -> SearchResult:
    """Evolve from `start`, or from data parallelism and the experts; see the module.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    return run_procedure(task, Evolution(task, starts_for(task, start), settings or EvolutionSettings()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Where evolution stands: the members in the order in which they came, children so far, survivors."""

    members: tuple[Scored, ...] = ()
    step: int = 0
    num_accepted: int = 0


class Evolution:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self, task: SearchTask, starts: tuple[tuple[str, Strategy], ...], settings: EvolutionSettings
    ) -> None:
        graph, cluster = task.part.graph, task.problem.cluster
        self._starts, self._settings, self._seed = starts, settings, task.seed
        self._proposals = Proposals(graph, cluster.num_devices, ProposalSettings())
        self._neighbours = neighbours(graph)
        self._block: tuple[int, Draws] | None = None

    @property
    def settings(self) -> Signature:
        """How the population lives, and the starts' names."""
        return {**asdict(self._settings), "starts": ", ".join(name for name, _ in self._starts)}

    def begin(self) -> Generation:
        """Without members."""
        return Generation()

    def propose(self, state: Generation) -> Trial:
        """The next of the first members, or a child."""
        if len(state.members) < self._settings.population:
            return Trial(self._first_member(len(state.members)))
        return Trial(self._child(state), max(state.members, key=_rank).limit_s)

    def advance(self, state: Generation, trial: Trial, evaluation: Evaluation | None) -> Generation:
        """With the new member, or with the child in the place of the worst one."""
        members, tried = state.members, None if evaluation is None else Scored(trial.strategy, evaluation)
        if len(members) < self._settings.population:
            assert tried is not None, "first members are evaluated without a limit"
            return replace(state, members=(*members, tried))
        worst = max(range(len(members)), key=lambda index: _rank(members[index]))
        state = replace(state, step=state.step + 1)
        known = {_rank(member) for member in members}
        if tried is None or _rank(tried) >= _rank(members[worst]) or _rank(tried) in known:
            return state
        survivors = (*members[:worst], tried, *members[worst + 1 :])
        return replace(state, members=survivors, num_accepted=state.num_accepted + 1)

    def view(self, state: Generation) -> View:
        """The children so far, and the median member's time."""
        if not state.members:
            return View("first members", 0.0, 0)
        ranked = sorted(state.members, key=_rank)
        median_s = ranked[len(ranked) // 2].evaluation.iteration_time_s
        return View(f"{state.step} children", median_s, state.num_accepted)

    def pack(self, state: Generation) -> dict[str, Any]:
        """All members."""
        return {
            "members": [packed(member) for member in state.members],
            "step": state.step,
            "num_accepted": state.num_accepted,
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> Generation:
        """Where it stood."""
        return Generation(
            members=tuple(replay(member) for member in content["members"]),
            step=int(content["step"]),
            num_accepted=int(content["num_accepted"]),
        )

    def _first_member(self, number: int) -> Strategy:
        """A start, or one of them mutated in a random share of its operators."""
        start = self._starts[number % len(self._starts)][1]
        if number < len(self._starts):
            return start
        share = np.random.default_rng((self._seed, _MEMBER_STREAM, number, 0)).random()
        draws = self._proposals.block(self._seed, _MEMBER_STREAM, number)
        most = self._settings.initial_mutation * len(start.configs)
        return self._mutated(start, draws, range(min(BLOCK_SIZE, 1 + int(share * most))))

    def _child(self, state: Generation) -> Strategy:
        rng = np.random.default_rng((self._seed, _STEP_STREAM, state.step))
        first, second = (self._parent(state, rng) for _ in range(2))
        crossed = first is not second and rng.random() < self._settings.crossover
        num_mutations = int(rng.integers(0 if crossed else 1, MUTATIONS + 1))
        child = first.strategy
        if crossed:
            configs = list(child.configs)
            for operator in subgraph(self._neighbours, rng):
                configs[operator] = second.strategy.configs[operator]
            child = replace(child, configs=tuple(configs))
        index, row = divmod(state.step * MUTATIONS, BLOCK_SIZE)
        if self._block is None or self._block[0] != index:
            self._block = index, self._proposals.block(self._seed, _MUTATION_STREAM, index)
        return self._mutated(child, self._block[1], range(row, row + num_mutations))

    def _parent(self, state: Generation, rng: np.random.Generator) -> Scored:
        drawn = rng.integers(len(state.members), size=self._settings.tournament)
        return min([state.members[int(index)] for index in drawn], key=_rank)

    def _mutated(self, strategy: Strategy, draws: Draws, rows: range) -> Strategy:
        for row in rows:
            operator = draws.operators[row]
            group = self._proposals.tied(operator) if draws.tied[row] else (operator,)
            strategy = moved_together(strategy, group, operator, draws.config(row))
        return strategy


def neighbours(graph: OperatorGraph) -> tuple[tuple[int, ...], ...]:
    """For each operator those that it exchanges an activation with, ascending."""
    near: list[set[int]] = [set() for _ in graph.operators]
    for tensor, readers in graph.consumers.items():
        producer = graph.producer[tensor]
        for reader, _ in readers:
            near[producer].add(reader)
            near[reader].add(producer)
    return tuple(tuple(sorted(found - {index})) for index, found in enumerate(near))


def subgraph(near: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> set[int]:
    """A random connected set of operators: up to half of them, grown one random neighbour at a time."""
    size = int(rng.integers(1, len(near) // 2 + 2))
    chosen: set[int] = set()
    border = [int(rng.random() * len(near))]
    while border and len(chosen) < size:
        position = int(rng.random() * len(border))
        # The last takes the place of the one that is taken: removing from the middle costs the length.
        border[position], border[-1] = border[-1], border[position]
        operator = border.pop()
        if operator not in chosen:
            chosen.add(operator)
            border += [other for other in near[operator] if other not in chosen]
    return chosen


def _rank(scored: Scored) -> tuple[bool, float]:
    return rank(scored.evaluation)
