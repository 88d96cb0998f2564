"""What candidates would mean in the company of the other operators' choices.

`Contexts` holds, for B samples side by side, a candidate for each operator and whether it is *decided*
(undecided operators hold their start). `row` gives the features of one operator's candidates given all other
operators; but for the column ``is_current`` they do not depend on the operator's own choice.

With S the iteration's scale (the busiest device's compute seconds under the start) and ``g(x) = log(1 + 1000
x / S) / 2`` (0.35 at a thousandth of the iteration, 3.5 at a whole one), the columns are

    moving_in             g(seconds of moving from the producers' candidates)
    moving_out            g(seconds of moving to the consumers' candidates)
    total                 g(own compute + moving in + moving out + gradient summation)
    total_relative        log(that / the least of all candidates)
    load_max, load_mean   g(compute seconds of the others on the candidate's devices), largest and mean
    load_after            log(busiest device with the candidate / busiest device without the operator)
    memory_before         the others' bytes on the candidate's devices / capacity, largest
    memory_after          the same with the candidate, largest of these devices
    aligned_in            share of the producers' edges that move nothing
    aligned_out           share of the consumers' edges that move nothing
    same_devices          share of the producers that use the very same devices
    tied_agreement        share of the decided tied operators that are configured so
    tied_decided          share of the tied operators that are decided
    neighbours_decided    share of the operators at the other end of edges that are decided
    is_current            1 for the candidate that the operator holds (0 everywhere if switched off)

clipped to at most 5. Loads and memory are sums over tasks, as `soaprl_envs.tables.Alone` has them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import compiled_for
from soaprl.errors import StrategyError
from soaprl_envs.choices import Choices
from soaprl_envs.kernels import Company, choose_in_all, fill_rows, place_all
from soaprl_envs.moving import link_loads

CONTEXT_COLUMNS = (
    "moving_in",
    "moving_out",
    "total",
    "total_relative",
    "load_max",
    "load_mean",
    "load_after",
    "memory_before",
    "memory_after",
    "aligned_in",
    "aligned_out",
    "same_devices",
    "tied_agreement",
    "tied_decided",
    "neighbours_decided",
    "is_current",
)
NUM_CONTEXT = len(CONTEXT_COLUMNS)


class Contexts:
    """The choices of B samples of one problem; see the module.

    Not for several threads at once, also not with another `Contexts` of the same `Choices`.

    Args:
        choices: The candidates.
        num_samples: B.

    Attributes:
        choices: The candidates.
        chosen: Shape [B, N]; the candidate that each operator holds. Change it by `choose` and `assign` only.
        decided: Shape [B, N].
    """

    def __init__(self, choices: Choices, num_samples: int = 1) -> None:
        self.choices = choices
        self._tables = choices.tables
        num_devices = self._tables.cluster.num_devices
        shape = num_samples, choices.num_operators
        self._company = Company(
            chosen=np.zeros(shape, np.int64),
            decided=np.zeros(shape, np.bool_),
            load_s=np.zeros((num_samples, num_devices), np.float64),
            load_bytes=np.zeros((num_samples, num_devices), np.int64),
            others_s=np.zeros(num_devices, np.float64),
            others_bytes=np.zeros(num_devices, np.int64),
            own_s=np.zeros(num_devices, np.float64),
            own_bytes=np.zeros(num_devices, np.int64),
            total_s=np.zeros(choices.num_candidates, np.float64),
        )
        self._loads = link_loads(self._tables.cluster)
        self._choose: Callable[..., None] | None = None
        self._fill: Callable[..., None] | None = None
        self.reset()

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self._company.chosen)

    @property
    def chosen(self) -> IntArray:
        """The candidate that each operator holds, shape [B, N]."""
        return self._company.chosen

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Which operators are decided, shape [B, N]."""
        return self._company.decided

    def reset(self) -> None:
        """All operators hold their start, and none is decided."""
        self.assign(np.broadcast_to(self.choices.start, self.chosen.shape), decided=False)

    def assign(self, chosen: IntArray, *, decided: NDArray[np.bool_] | bool = True) -> None:
        """Gives all operators of all samples a candidate.

        Args:
            chosen: Shape [B, N] or [N].
            decided: Shape [B, N], [N] or one for all.
        """
        self._company.chosen[:] = chosen
        self._company.decided[:] = decided
        held = np.clip(self.chosen, 0, self.choices.num_candidates - 1)
        legal = (held == self.chosen) & self.choices.mask[np.arange(self.choices.num_operators), held]
        if not legal.all():
            sample, operator = np.argwhere(~legal)[0].tolist()
            found = int(self.chosen[sample, operator])
            self.reset()
            raise StrategyError(
                f"expected candidates where the mask of {self.choices.problem.graph.name!r} is true, found"
                f" {found} for operator {operator} of sample {sample}."
            )
        place_all(self._tables.alone, self._company)

    def choose(self, operator: int, candidate: IntArray | int) -> None:
        """Decides one operator in all samples.

        Args:
            operator: Which.
            candidate: Shape [B], or one for all.
        """
        self.choose_each(np.full(self.num_samples, operator), candidate)

    def choose_each(self, operators: IntArray, candidate: IntArray | int) -> None:
        """Like `choose`, for another operator in each sample: `operators` has shape [B]."""
        numbers = np.empty(self.num_samples, np.int64)
        numbers[:] = candidate
        legal = self.choices.mask[operators, np.clip(numbers, 0, self.choices.num_candidates - 1)]
        if not (legal & (numbers >= 0) & (numbers < self.choices.num_candidates)).all():
            raise StrategyError(
                f"expected candidates where the mask of {self.choices.problem.graph.name!r} is true, found"
                f" {numbers.tolist()} for the operators {np.asarray(operators).tolist()}."
            )
        choose_in_all(self._tables.alone, self._company, operators, numbers)

    def choose_checked(self, operators: IntArray, candidates: IntArray) -> None:
        """`choose_each` of int64 arrays of shape [B] that the caller has checked: for inner loops."""
        arguments = self._tables.alone, self._company, operators, candidates
        if self._choose is None:
            self._choose = compiled_for(choose_in_all, *arguments)
        self._choose(*arguments)

    def row(
        self, operator: int, *, current: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The context features of an operator's candidates in all samples.

        Args:
            operator: Which.
            current: Whether the column ``is_current`` says which candidate the operator holds.
            out: Where to write; a new array otherwise.

        Returns:
            Shape [B, K, `NUM_CONTEXT`]; 0 where the operator has no candidate.
        """
        return self.rows(np.full(self.num_samples, operator), current=current, out=out)

    def rows(
        self, operators: IntArray, *, current: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Like `row`, for another operator in each sample: `operators` has shape [B]."""
        ours = out is None
        if out is None:
            out = np.empty((self.num_samples, self.choices.num_candidates, NUM_CONTEXT), np.float32)
        tables = self._tables
        arguments = (
            tables.alone,
            tables.near,
            tables.moves,
            tables.cluster,
            self._loads,
            self._company,
            operators,
            current,
            out,
        )
        if not ours:
            fill_rows(*arguments)
            return out
        if self._fill is None:
            self._fill = compiled_for(fill_rows, *arguments)
        self._fill(*arguments)
        return out
