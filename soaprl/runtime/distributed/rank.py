"""One rank of a program as this process."""

from collections.abc import Mapping

import torch
from torch import Tensor

from soaprl.errors import ExecutionError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.bound_steps import BoundStep, bound_steps
from soaprl.runtime.calls import Kernel
from soaprl.runtime.distributed.failures import Failures
from soaprl.runtime.distributed.groups import DEFAULT_TIMEOUT_S, Groups
from soaprl.runtime.distributed.health import Place, place_of
from soaprl.runtime.distributed.scheduling import serve_gloo
from soaprl.runtime.distributed.transport import Arrival, LinkError, Transport
from soaprl.runtime.local import kernels
from soaprl.runtime.logical import UpdateRank, Watch
from soaprl.runtime.program import (
    Exchange,
    Forward,
    LoadInputs,
    Program,
    Shared,
    Step,
    Update,
)
from soaprl.runtime.rank import RankState
from soaprl.runtime.stores import Fetch


class DistributedRank:
    """The rank of a program that this process is.

    Args:
        graph: The operators.
        program: The programs of all ranks; the same in all processes.
        state: Gives the initial content of blocks of parameters and of whole buffers.
        groups: The job's process groups; made here if None. Give it where a job runs several programs.
        device: Where this rank's tensors are; the CPU if None.
        table: Kernels, built anew if None.
        timeout_s: How long to wait for other ranks before the job has failed.

    Attributes:
        state: What the rank holds.
        num_iterations: Iterations so far.

    Raises:
        ExecutionError: The job has another number of processes than the program has ranks.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: Program,
        state: Fetch,
        *,
        groups: Groups | None = None,
        device: torch.device | None = None,
        table: Mapping[str, Kernel] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        groups = Groups(timeout_s=timeout_s) if groups is None else groups
        if groups.num_ranks != program.num_ranks:
            raise ExecutionError(
                f"the program of {program.model!r} has {program.num_ranks} ranks, and the job has"
                f" {groups.num_ranks} processes: start {program.num_ranks}"
            )
        groups.prepare(program)
        table = kernels() if table is None else table
        self.state = RankState(graph, program, groups.rank, state, device or torch.device("cpu"), table)
        self._transport = Transport(self.state, groups, timeout_s=timeout_s)
        self._steps: dict[bool, tuple[BoundStep, ...]] = {}
        self._received = tuple(s for s in self.state.program.steps if isinstance(s, Exchange) and s.receives)
        self._pending: dict[int, tuple[Shared, Arrival]] = {}
        self._health = groups.health
        self._failures = Failures(self.state.graph, program, groups, timeout_s=timeout_s)
        # The shared step at hand, and where in its program the rank is.
        self._shared: Shared | None = None
        self._position = self.state.tasks.position
        if groups.backend == "gloo":
            self._position.between = serve_gloo
        self.num_iterations = 0

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return self.state.program.rank

    def iterate(
        self, batch: Fetch, *, seed: int = 0, update: UpdateRank | None = None, watch: Watch | None = None
    ) -> Tensor:
        """Runs one iteration; all ranks call it together.

        Args:
            batch: Gives the blocks of the graph inputs that this rank's program loads.
            seed: Of the random numbers of the iteration (dropout); the same on all ranks.
            update: Called when the gradients of this rank are complete.
            watch: Called with all that this rank's tasks write.

        Returns:
            The loss, float64, the same on all ranks.

        Raises:
            ExecutionError: A rank failed.
        """
        with torch.enable_grad(), self.state.arithmetic():
            self._iterate(batch, seed, update, watch)
        self.num_iterations += 1
        return self.state.loss

    def _iterate(self, batch: Fetch, seed: int, update: UpdateRank | None, watch: Watch | None) -> None:
        position, apart = self._position, watch is not None or self.state.apart
        position.iteration, position.step, position.waiting = self.num_iterations, 0, False
        self._health.position = position
        self.state.begin(seed)
        self.state.clear_gradients()
        self._pending.clear()
        try:
            for expected in self._received:
                self._shared = expected
                self._transport.expect(expected)
            # Bound when they are first run, so that whoever follows the rank can do so from the beginning.
            if apart not in self._steps:
                self._steps[apart] = bound_steps(self.state, apart=apart)
            for number, step, waits, shared, run, drops in self._steps[apart]:
                position.come_to(number)
                if waits:
                    self._complete(waits)
                if shared is not None:
                    self._shared = shared
                    self._pending[shared.id] = (shared, self._transport.start(shared))
                elif run is not None:
                    run()
                    if watch is not None and isinstance(step, Forward):
                        for piece in step.writes:
                            watch(piece, self.state.value(piece))
                else:
                    self._at_the_ends(step, batch, update)
                if drops:
                    self.state.drop(drops)
            position.step = len(self.state.program.steps)
            self._complete(tuple(self._pending))
        except LinkError as error:
            assert self._shared is not None, "only shared steps need others"
            raise self._failures.of_others(place_of(position), self._shared, error) from error
        except Exception as error:
            raise self._failures.of_this_rank(place_of(position), error) from error

    def lost(self, what: str, error: BaseException) -> ExecutionError:
        """The error that names who did not answer, after waiting between iterations, in `what`, failed."""
        return self._failures.elsewhere(Place(self.num_iterations - 1, 0, True), what, error)

    def _complete(self, ids: tuple[int, ...]) -> None:
        """Lets what the shared steps `ids` brought be there."""
        self._position.waiting = True
        for number in ids:
            self._shared, arrive = self._pending.pop(number)
            arrive()
        self._position.waiting = False

    def _at_the_ends(self, step: Step, batch: Fetch, update: UpdateRank | None) -> None:
        if isinstance(step, LoadInputs):
            self.state.load_inputs(step, batch)
        elif isinstance(step, Update):
            self.state.fill_gradients()
            if update is not None:
                update(self.state)
