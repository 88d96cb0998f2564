"""The reference executor: the programs of all ranks in one process.

Each rank has tensors of its own, and what goes between them is copied. Ranks run one after the other up to
the next shared step; a shared step takes place when all of its ranks have come to it, and what it brings is
there only once a later step awaits it. So a program that waits too little, or in another order, fails here
as it would between processes.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from soaprl.errors import ProgramError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.bound_steps import BoundStep, bound_steps
from soaprl.runtime.calls import Kernel
from soaprl.runtime.local import kernels
from soaprl.runtime.micro_batches import unrolled
from soaprl.runtime.program import (
    Collective,
    Exchange,
    Forward,
    GatherParameters,
    LoadInputs,
    Piece,
    Program,
    ScatterGradients,
    Shared,
    Step,
    Update,
)
from soaprl.runtime.rank import RankState
from soaprl.runtime.sharding import own_parts
from soaprl.runtime.stores import Fetch

# What an executor calls when a rank comes to its update.
UpdateRank: TypeAlias = Callable[[RankState], None]
# What it calls with each piece that a rank has written.
Watch: TypeAlias = Callable[[Piece, Tensor], None]


class LogicalRanks:
    """All ranks of a program.

    Args:
        graph: The operators.
        program: A program of this graph.
        state: Gives the initial content of blocks of parameters and of whole buffers.
        devices: Where each rank's tensors are; all on the CPU if None.
        table: Kernels, built anew if None.

    Attributes:
        states: The state of each rank.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: Program,
        state: Fetch,
        *,
        devices: tuple[torch.device, ...] | None = None,
        table: Mapping[str, Kernel] | None = None,
    ) -> None:
        devices = devices or (torch.device("cpu"),) * program.num_ranks
        table = kernels() if table is None else table
        work = unrolled(graph, program.strategy)
        self.states = tuple(
            RankState(graph, program, rank, state, device, table, work=work)
            for rank, device in enumerate(devices)
        )
        self._steps: dict[bool, tuple[tuple[BoundStep, ...], ...]] = {}

    def iterate(
        self, batch: Fetch, *, seed: int = 0, update: UpdateRank | None = None, watch: Watch | None = None
    ) -> Tensor:
        """Runs one iteration.

        Args:
            batch: Gives blocks of the graph inputs.
            seed: Of the random numbers of the iteration (dropout).
            update: Called with each rank whose gradients are complete.
            watch: Called with all that tasks write.

        Returns:
            The loss, float64.

        Raises:
            ProgramError: Ranks wait for each other.
        """
        with torch.enable_grad(), self.states[0].arithmetic():
            return self._iterate(batch, seed, update, watch)

    def _iterate(self, batch: Fetch, seed: int, update: UpdateRank | None, watch: Watch | None) -> Tensor:
        apart = watch is not None or any(state.apart for state in self.states)
        # Bound when they are first run, so that whoever follows a rank can do so from the beginning.
        if apart not in self._steps:
            self._steps[apart] = tuple(bound_steps(state, apart=apart) for state in self.states)
        runs = [
            _RankRun(state, steps, batch, update, watch)
            for state, steps in zip(self.states, self._steps[apart], strict=True)
        ]
        for run in runs:
            run.state.begin(seed)
            run.state.clear_gradients()
            run.advance()
        while any(run.current is not None for run in runs):
            waiting = {run.rank: run for run in runs if run.current is not None}
            first = min(_shared(run.current).id for run in waiting.values())
            group = [run for run in waiting.values() if _shared(run.current).id == first]
            expected = _shared(group[0].current).group
            if tuple(run.rank for run in group) != expected:
                raise ProgramError(
                    f"step {first} is shared by the ranks {expected}, but only"
                    f" {tuple(run.rank for run in group)} come to it: compile the strategy again"
                )
            _perform(group)
            for run in group:
                run.advance()
        for run in runs:
            run.complete(list(run.pending))
        return self.states[0].loss


def _shared(step: Step | None) -> Shared:
    assert isinstance(step, Shared), "ranks stop at shared steps"
    return step


class _RankRun:
    """One rank in one iteration."""

    def __init__(
        self,
        state: RankState,
        steps: tuple[BoundStep, ...],
        batch: Fetch,
        update: UpdateRank | None,
        watch: Watch | None,
    ) -> None:
        self.state, self.rank = state, state.program.rank
        self.pending: dict[int, Callable[[], None]] = {}
        self._steps, self._batch, self._update, self._watch = iter(steps), batch, update, watch
        self._drops: tuple[int, ...] = ()
        # The shared step that the rank has come to; None after the last.
        self.current: Shared | None = None

    def complete(self, ids: list[int] | tuple[int, ...]) -> None:
        """Lets what the shared steps `ids` brought be there."""
        for number in ids:
            self.pending.pop(number)()

    def advance(self) -> None:
        """Runs up to the next shared step, which awaits what it needs."""
        for _, step, waits, shared, run, drops in self._steps:
            if waits:
                self.complete(waits)
            if shared is not None:
                self.current, self._drops = shared, drops
                return
            if run is None:
                self._at_the_ends(step)
            else:
                run()
                if self._watch is not None and isinstance(step, Forward):
                    for piece in step.writes:
                        self._watch(piece, self.state.value(piece))
            self.state.drop(drops)
        self.current = None

    def leave(self) -> None:
        """Forgets what only the shared step at hand needed."""
        self.state.drop(self._drops)

    def _at_the_ends(self, step: Step) -> None:
        if isinstance(step, LoadInputs):
            self.state.load_inputs(step, self._batch)
        elif isinstance(step, Update):
            self.state.fill_gradients()
            if self._update is not None:
                self._update(self.state)


def _perform(group: list[_RankRun]) -> None:
    """Carries out the shared step that all of its ranks have come to."""
    step = group[0].current
    if isinstance(step, Exchange):
        _exchange(group)
    elif isinstance(step, GatherParameters):
        _gather(group)
    else:
        _reduce(group)
    for run in group:
        run.leave()


def _exchange(group: list[_RankRun]) -> None:
    posted: dict[tuple[int, int], list[Tensor]] = {}
    for run in group:
        step = run.current
        assert isinstance(step, Exchange), "all ranks share the step"
        for message in step.sends:
            contents = run.state.outgoing(message, step.direction)
            posted[run.rank, message.peer] = [content.clone() for content in contents]
    for run in group:
        step = run.current
        assert isinstance(step, Exchange), "all ranks share the step"

        def arrive(run: _RankRun = run, step: Exchange = step) -> None:
            for message in step.receives:
                contents = [c.to(run.state.device) for c in posted[message.peer, run.rank]]
                run.state.incoming(message, step.direction, contents)

        run.pending[step.id] = arrive


def _reduce(group: list[_RankRun]) -> None:
    if len(group) == 1:
        (run,) = group
        alone = _collective(run)
        contributions = run.state.contribution(alone)
        run.pending[alone.id] = lambda: run.state.enter(alone, contributions)
        return
    if _reduce_encoded(group):
        return
    totals: list[Tensor] = []
    for run in group:
        contributions = run.state.contribution(_collective(run))
        if not totals:
            totals = [c.clone() for c in contributions]
        else:
            totals = [t + c.to(t.device) for t, c in zip(totals, contributions, strict=True)]
    for run in group:
        _enter_later(run, _taken(_collective(run), totals, run.rank))


def _reduce_encoded(group: list[_RankRun]) -> bool:
    """Sums gradients as ranks of processes do that send fewer bits; False where they do not."""
    found = [run.state.encoded_sum(_collective(run)) for run in group]
    sums = [encoded for encoded in found if encoded is not None]
    if not sums:
        return False
    devices = [run.state.device for run in group]
    added = [
        encoded.added(torch.stack([other.sent[place].to(device) for other in sums]))
        for place, (encoded, device) in enumerate(zip(sums, devices, strict=True))
    ]
    if isinstance(_collective(group[0]), ScatterGradients):
        for run, encoded, total in zip(group, sums, added, strict=True):
            _enter_later(run, encoded.own_totals(total))
        return True
    rows = [encoded.encoded(total) for encoded, total in zip(sums, added, strict=True)]
    for run, encoded, device in zip(group, sums, devices, strict=True):
        _enter_later(run, encoded.totals(torch.cat([row.to(device) for row in rows])))
    return True


def _gather(group: list[_RankRun]) -> None:
    contents = [c.clone() for run in group for c in run.state.contribution(_collective(run))]
    for run in group:
        _enter_later(run, contents)


def _taken(step: Collective, totals: list[Tensor], rank: int) -> list[Tensor]:
    """What a rank takes of the sums of all, of a scatter only those of its parts."""
    return totals[own_parts(step, rank)] if isinstance(step, ScatterGradients) else totals


def _enter_later(run: _RankRun, contents: list[Tensor]) -> None:
    step = _collective(run)

    def enter() -> None:
        run.state.enter(step, [content.to(run.state.device, copy=True) for content in contents])

    run.pending[step.id] = enter


def _collective(run: _RankRun) -> Collective:
    step = run.current
    assert isinstance(step, Collective), "all ranks share the step"
    return step
