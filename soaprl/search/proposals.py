"""Random configurations and strategies, drawn in blocks.

A proposal draws an operator uniformly, then a configuration of it that does not depend on the current one:

*uniform*: uniform over all legal configurations, each counted once. An operator with degree vectors d of
``k(d)`` tasks on n devices has the sum of ``n ** k(d)`` configurations, so almost all draws have the largest
number of tasks, on devices with no pattern.

*mixture* (default): with probability `ProposalSettings.even_degrees`, the degree vector is uniform over the
*even* ones (each degree divides its factor's extent, and the tasks divide n), otherwise over all legal ones;
on 64 devices an operator has thousands of these, dozens of them even. Then the devices of its k tasks are

    aligned block   (start + j) mod n, start a random multiple of k
    block           (start + j) mod n, start random
    strided         (start + j s + floor(j s / n)) mod n, s a random divisor of n with 1 < s < n
    single          one random device for all tasks
    arbitrary       independent random devices for all tasks

with the weights of `DeviceWeights`. As *arbitrary* has a positive weight, every legal configuration has a
positive probability q, which `Proposals.log_probability` gives; implemented in `Proposals._devices`.

*Tied moves* (an extension of the paper). Operators that share parameters, as the steps of an unrolled
recurrent model do, cannot change one by one without synchronizing gradients between two layouts of one
weight, so that single moves rarely lead anywhere. With probability `ProposalSettings.tied_moves`, a step
gives the drawn configuration to all operators of the drawn one's group that now are configured as it is.

The numbers of block b of a stream are a function of (seed, stream, b) alone, so that a search resumes at any
step without a saved generator.
"""

from dataclasses import dataclass
from math import inf, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.errors import SearchError
from soaprl.graph.operators import OperatorGraph
from soaprl.strategy.candidates import DegreeLimits, degree_choices, legal_degrees
from soaprl.strategy.strategy import OpConfig, Strategy

BLOCK_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeights:
    """Weights of the ways in which the mixture places the tasks of an operator; they sum to 1."""

    aligned: float = 0.3
    block: float = 0.2
    strided: float = 0.2
    single: float = 0.1
    arbitrary: float = 0.2

    def __post_init__(self) -> None:
        weights = self.as_tuple()
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-9 or self.arbitrary <= 0:
            raise SearchError(
                "expected device weights that are not negative and sum to 1, arbitrary above 0,"
                f" found {weights}."
            )

    def as_tuple(self) -> tuple[float, float, float, float, float]:
        """The weights in the order of the module's table."""
        return self.aligned, self.block, self.strided, self.single, self.arbitrary


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalSettings:
    """How random configurations are drawn.

    Attributes:
        kind: ``mixture`` or ``uniform``; see the module.
        max_tasks: Largest number of tasks of an operator; None: the number of devices.
        reductions: Whether factors that make partial sums may be split.
        divisors_only: Whether degrees must divide the extents.
        weights: Of the mixture.
        even_degrees: Probability that the mixture draws an even degree vector.
        tied_moves: Probability that a step moves operators that share parameters together.
    """

    kind: str = "mixture"
    max_tasks: int | None = None
    reductions: bool = True
    divisors_only: bool = False
    weights: DeviceWeights = DeviceWeights()
    even_degrees: float = 0.5
    tied_moves: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.tied_moves < 1:
            raise SearchError(f"expected tied_moves from 0 to below 1, found {self.tied_moves}.")
        if not 0 <= self.even_degrees < 1:
            raise SearchError(f"expected even_degrees from 0 to below 1, found {self.even_degrees}.")
        if self.kind not in ("mixture", "uniform"):
            raise SearchError(f"expected the proposal 'mixture' or 'uniform', found {self.kind!r}.")


class Draws(NamedTuple):
    """A block of proposals; row r is proposal r of the block.

    Attributes:
        operators: Operator of each row.
        degrees: Degree vector of each row.
        tasks: Number of tasks of each row.
        devices: Shape (rows, most tasks); the first `tasks` of a row count.
        exponentials: A standard exponential number for each row: minus the logarithm of the uniform number
            that an acceptance compares with.
        tied: Whether a row moves a whole group of operators that share parameters.
        vectors: Shape (rows,); the number of `degrees` among the operator's degree vectors.
    """

    operators: list[int]
    degrees: list[tuple[int, ...]]
    tasks: list[int]
    devices: NDArray[np.int64]
    exponentials: list[float]
    tied: list[bool]
    vectors: NDArray[np.int64]

    def config(self, row: int) -> OpConfig:
        """The configuration that a row proposes."""
        return OpConfig(self.degrees[row], tuple(self.devices[row, : self.tasks[row]].tolist()))


class Proposals:
    """Draws configurations for the operators of one graph on `num_devices` devices."""

    def __init__(self, graph: OperatorGraph, num_devices: int, settings: ProposalSettings) -> None:
        limits = DegreeLimits(
            max_tasks=settings.max_tasks or num_devices,
            reductions=settings.reductions,
            divisors_only=settings.divisors_only,
        )
        shared: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
        self._tables: list[list[tuple[int, ...]]] = []
        for operator in graph.operators:
            key = degree_choices(operator, limits)
            if key not in shared:
                shared[key] = [tuple(row) for row in legal_degrees(operator, limits).tolist()]
            self._tables.append(shared[key])
        self._groups = tied_groups(graph)
        self._settings = settings
        self._num_devices = num_devices
        self._strides = np.array([s for s in range(2, num_devices) if num_devices % s == 0] or [1])
        self._counts = np.array([len(table) for table in self._tables])
        self._first = np.concatenate(([0], np.cumsum(self._counts)[:-1]))
        self._tasks = np.concatenate([np.prod(np.array(t, dtype=np.int64), axis=1) for t in self._tables])
        self._is_even = np.concatenate(
            [even_rows(o.extents, t, num_devices) for o, t in zip(graph.operators, self._tables, strict=True)]
        )
        self._even = np.flatnonzero(self._is_even)
        self._even_first = np.searchsorted(self._even, self._first)
        self._even_counts = np.searchsorted(self._even, self._first + self._counts) - self._even_first
        self._rows: list[dict[tuple[int, ...], int]] = [{} for _ in self._tables]
        self._uniform = settings.kind == "uniform"
        self._cumulative = self._uniform_cumulative() if self._uniform else np.empty(0)

    @property
    def num_operators(self) -> int:
        """Number of operators of the graph."""
        return len(self._tables)

    def degree_vectors(self, operator: int) -> list[tuple[int, ...]]:
        """The degree vectors that may be drawn for `operator`, in lexicographic order."""
        return self._tables[operator]

    @property
    def tables(self) -> list[list[tuple[int, ...]]]:
        """The degree vectors that may be drawn for each operator."""
        return self._tables

    def tied(self, operator: int) -> tuple[int, ...]:
        """The operators that tied moves may move with `operator`, itself included."""
        return self._groups[operator]

    def block(self, seed: int, stream: int, index: int) -> Draws:
        """Proposals ``index * BLOCK_SIZE ..`` of a stream: always the same for the same arguments."""
        rng = np.random.default_rng((seed, stream, index))
        operators = rng.integers(self.num_operators, size=BLOCK_SIZE)
        return self._drawn(rng, operators)

    def strategy(self, rng: np.random.Generator) -> Strategy:
        """A random configuration for every operator."""
        draws = self._drawn(rng, np.arange(self.num_operators))
        return Strategy(tuple(draws.config(row) for row in range(self.num_operators)))

    def log_probability(self, operator: int, config: OpConfig) -> float:
        """Log of the probability that a proposal for `operator` is `config`, which must be legal.

        Minus infinity for one that is never proposed, as with more tasks than the settings allow.
        """
        rows = self._rows[operator]
        if not rows:
            rows.update((vector, row) for row, vector in enumerate(self._tables[operator]))
        if config.degrees not in rows:
            return -inf
        one = np.array([operator]), np.array([rows[config.degrees]]), np.array([config.num_tasks])
        return float(self._log_probabilities(*one, np.array([config.devices], np.int64))[0])

    def log_probabilities(self, draws: Draws, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """`log_probability` of what these rows propose."""
        operators, tasks = np.array(draws.operators)[rows], np.array(draws.tasks)[rows]
        return self._log_probabilities(operators, draws.vectors[rows], tasks, draws.devices[rows])

    def _log_probabilities(
        self,
        operators: NDArray[np.int64],
        vectors: NDArray[np.int64],
        tasks: NDArray[np.int64],
        devices: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """By row; of the devices of a row the first `tasks` count."""
        n = self._num_devices
        if self._uniform:
            sums = [self._tasks[f : f + c] * log(n) for f, c in zip(self._first, self._counts, strict=True)]
            normal = np.array([-float(np.logaddexp.reduce(row)) for row in sums])
            return normal[operators]
        arbitrary = log(self._settings.weights.arbitrary) - tasks * log(n)
        with np.errstate(divide="ignore"):
            structured = np.log(self._structured_probabilities(tasks, devices))
        even, share = self._is_even[self._first[operators] + vectors], self._settings.even_degrees
        degrees = (1 - share) / self._counts[operators] + share * even / self._even_counts[operators]
        chosen: NDArray[np.float64] = np.logaddexp(structured, arbitrary) + np.log(degrees)
        return chosen

    def _drawn(self, rng: np.random.Generator, operators: NDArray[np.int64]) -> Draws:
        rows = len(operators)
        uniform = rng.random(rows)
        if self._uniform:
            index = np.searchsorted(self._cumulative, operators + uniform, side="right")
            index = np.minimum(index, self._first[operators] + self._counts[operators] - 1)
        else:
            index = self._first[operators] + (uniform * self._counts[operators]).astype(np.int64)
            among = (uniform * self._even_counts[operators]).astype(np.int64)
            chosen = self._even[self._even_first[operators] + among]
            index = np.where(rng.random(rows) < self._settings.even_degrees, chosen, index)
        tasks = self._tasks[index]
        within = index - self._first[operators]
        names = operators.tolist()
        return Draws(
            operators=names,
            degrees=[self._tables[o][i] for o, i in zip(names, within.tolist(), strict=True)],
            tasks=tasks.tolist(),
            devices=self._devices(rng, tasks),
            exponentials=rng.standard_exponential(rows).tolist(),
            tied=(rng.random(rows) < self._settings.tied_moves).tolist(),
            vectors=within,
        )

    def _devices(self, rng: np.random.Generator, tasks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Devices for rows with these numbers of tasks; see the module's table."""
        n, rows, width = self._num_devices, len(tasks), int(tasks.max())
        arbitrary = rng.integers(n, size=(rows, width))
        if self._uniform:
            return arbitrary
        way = np.searchsorted(
            np.cumsum(self._settings.weights.as_tuple()[:-1]), rng.random(rows), side="right"
        )
        start = rng.integers(n, size=rows)
        aligned = (rng.random(rows) * -(-n // tasks)).astype(np.int64) * tasks
        start = np.where(way == 0, aligned, start)
        stride = np.where(way == 2, rng.choice(self._strides, size=rows), np.where(way == 3, 0, 1))
        offset = np.arange(width) * stride[:, None]
        # Strided placements move on by one device whenever they went around the cluster.
        turn = np.where((way == 2)[:, None], offset // n, 0)
        structured = (start[:, None] + offset + turn) % n
        return np.where((way == 4)[:, None], arbitrary, structured)

    def _structured_probabilities(
        self, tasks: NDArray[np.int64], devices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Probability that the mixture places tasks on these devices in any way but the arbitrary one."""
        n, weights, j = self._num_devices, self._settings.weights, np.arange(devices.shape[1])
        outside, first = j >= tasks[:, None], devices[:, :1]

        def follows(stride: int, turn: int) -> NDArray[np.bool_]:
            expected = (first + j * stride + j * stride // n * turn) % n
            matches: NDArray[np.bool_] = ((devices == expected) | outside).all(axis=1)
            return matches

        block = follows(1, 0)
        probability = weights.aligned * (block & (first[:, 0] % tasks == 0)) / -(-n // tasks)
        probability = probability + weights.block * block / n
        strides = self._strides.tolist()
        probability = probability + weights.strided * sum(follows(s, 1) for s in strides) / len(strides) / n
        placed: NDArray[np.float64] = probability + weights.single * follows(0, 0) / n
        return placed

    def _uniform_cumulative(self) -> NDArray[np.float64]:
        """Operator o's degree vectors share the interval [o, o + 1) in proportion to n ** tasks."""
        parts = []
        for operator, (first, count) in enumerate(zip(self._first, self._counts, strict=True)):
            weights = self._tasks[first : first + count] * log(self._num_devices)
            shares = np.exp(weights - np.logaddexp.reduce(weights))
            parts.append(operator + np.minimum(np.cumsum(shares), 1.0))
        return np.concatenate(parts)


def log_ratio(new: float, old: float) -> float:
    """The difference of the log-probabilities of two proposals; 0 if the old one is never proposed.

    Only a start can be so, and a chain leaves it as if it were as probable as where it goes.
    """
    return 0.0 if old == -inf else new - old


def even_rows(
    extents: tuple[int, ...], vectors: list[tuple[int, ...]], num_devices: int
) -> NDArray[np.bool_]:
    """Which degree vectors cut every factor evenly and give each of some devices the same number of tasks."""
    degrees = np.array(vectors, dtype=np.int64).reshape(len(vectors), len(extents))
    divides = (np.array(extents, dtype=np.int64) % degrees == 0).all(axis=1)
    even: NDArray[np.bool_] = divides & (num_devices % np.prod(degrees, axis=1) == 0)
    return even


def tied_groups(graph: OperatorGraph) -> tuple[tuple[int, ...], ...]:
    """For each operator, those that read the same parameters and have the same factors, itself included."""
    members: dict[object, list[int]] = {}
    keys: list[object] = []
    for index, operator in enumerate(graph.operators):
        read = frozenset(access.tensor for access in operator.parameters)
        key = (read, operator.factors) if read else index
        keys.append(key)
        members.setdefault(key, []).append(index)
    return tuple(tuple(members[key]) for key in keys)
