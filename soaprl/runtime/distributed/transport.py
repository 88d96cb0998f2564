"""What one rank does in a shared step: starts to talk, and takes what comes when it is needed.

A `Transport` has buffers for each step, made in the first iteration and used again in each.
With gloo all that travels is in CPU memory: tensors of a GPU are staged, so that several processes can share
one. With NCCL it stays where it is.

A message leaves over gloo once a thread of its sender has been told that the receiver is ready for it. If it
is told while the sender computes, that thread and the message wait until the sender does. So a rank is ready
for all exchanges of an iteration from its beginning (`Transport.expect`): its buffers are there anyway.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from soaprl.runtime.compression import EncodedSum
from soaprl.runtime.distributed.buffers import MessageBuffer, PartsBuffer, SumBuffer, in_a_row, shaped
from soaprl.runtime.distributed.groups import Groups
from soaprl.runtime.program import (
    Collective,
    Exchange,
    GatherParameters,
    Message,
    ScatterGradients,
    Shared,
)
from soaprl.runtime.rank import RankState

# Completes a shared step: waits, and lets what it brought be there.
Arrival: TypeAlias = Callable[[], None]


class LinkError(RuntimeError):
    """Other ranks did not answer."""


class Transport:
    """The links of one rank to the others.

    Args:
        state: The rank.
        groups: The job's process groups.
        timeout_s: How long to wait for others; with NCCL, the process group's timeout counts.
    """

    def __init__(self, state: RankState, groups: Groups, *, timeout_s: float) -> None:
        self._state, self._groups = state, groups
        self._timeout = timedelta(seconds=timeout_s)
        self._nccl = groups.backend == "nccl"
        self._wire = state.device if self._nccl else torch.device("cpu")
        self._messages: dict[tuple[int, int, bool], MessageBuffer] = {}
        self._sums: dict[int, SumBuffer] = {}
        self._shards: dict[int, PartsBuffer] = {}
        self._arriving: dict[int, Tensor] = {}
        # What receives each expected exchange.
        self._expected: dict[int, list[dist.Work]] = {}
        # What begins the second round of each encoded sum that is in its first.
        self._first_rounds: list[Callable[[], None]] = []

    def expect(self, step: Exchange) -> None:
        """Is ready for the messages of an exchange before the rank comes to it.

        With NCCL, whose sends and receives follow each other in one order, nothing happens.

        Raises:
            LinkError: Others do not answer.
        """
        if not self._nccl:
            self._expected[step.id] = self._posted(step.id, sends=[], receives=self._received(step))

    def start(self, step: Shared, *, scale: float = 1.0) -> Arrival:
        """Sends what this rank has for the others; what it returns takes what they have.

        Args:
            step: The step that the rank has come to.
            scale: Of the loss that is minimized; see `RankState.contribution`.

        Raises:
            LinkError: Others do not answer; so does what it returns.
        """
        if isinstance(step, Exchange):
            return self._exchange(step)
        encoded = self._state.encoded_sum(step)
        if encoded is not None:
            return self._reduce_encoded(step, encoded)
        if isinstance(step, ScatterGradients):
            return self._scatter(step)
        if isinstance(step, GatherParameters):
            return self._gather(step)
        return self._reduce(step, scale)

    def _exchange(self, step: Exchange) -> Arrival:
        expected = self._expected.pop(step.id, None)
        sends = [(m.peer, self._packed(step, m)) for m in step.sends]
        receives = self._received(step) if expected is None else []
        works = [*(expected or ()), *self._posted(step.id, sends, receives)]

        def arrive() -> None:
            for work in works:
                self._wait(work)
            for message in step.receives:
                contents = self._buffer(step.id, message, received=True).pieces
                self._state.incoming(message, step.direction, self._here(contents))

        return arrive

    def _received(self, step: Exchange) -> list[tuple[int, Tensor]]:
        return [(m.peer, self._buffer(step.id, m, received=True).packed) for m in step.receives]

    def _packed(self, step: Exchange, message: Message) -> Tensor:
        contents = self._state.outgoing(message, step.direction)
        if len(contents) == 1 and contents[0].stride(0) == 1 and contents[0].device == self._wire:
            # Nothing writes to it while it is on its way: what was written stays, and gradients are gone.
            return contents[0].view(torch.uint8)
        buffer = self._buffer(step.id, message, received=False)
        buffer.pack(contents)
        return buffer.packed

    def _posted(
        self, tag: int, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]
    ) -> list[dist.Work]:
        with _links():
            if self._nccl:
                operations = [dist.P2POp(dist.irecv, tensor, peer) for peer, tensor in receives]
                operations += [dist.P2POp(dist.isend, tensor, peer) for peer, tensor in sends]
                return list(dist.batch_isend_irecv(operations))
            works = [dist.irecv(tensor, peer, tag=tag) for peer, tensor in receives]
            works += [dist.isend(tensor, peer, tag=tag) for peer, tensor in sends]
        return [work for work in works if work is not None]

    def _buffer(self, number: int, message: Message, *, received: bool) -> MessageBuffer:
        key = (number, message.peer, received)
        if key not in self._messages:
            self._messages[key] = MessageBuffer(self._state.graph, message, self._wire)
        return self._messages[key]

    def _reduce(self, step: Collective, scale: float) -> Arrival:
        contributions = self._state.contribution(step, scale)
        if len(step.group) == 1:
            return lambda: self._state.enter(step, contributions)
        if step.id not in self._sums:
            self._sums[step.id] = SumBuffer(contributions, self._wire)
        buffer = self._sums[step.id]
        buffer.pack(contributions)
        group = self._groups[step.group]
        with _links():
            works = [dist.all_reduce(flat, group=group, async_op=True) for flat in buffer.packed]

        def arrive() -> None:
            for work in works:
                self._wait(work)
            self._state.enter(step, self._here(buffer.summands))

        return arrive

    def _reduce_encoded(self, step: Collective, encoded: EncodedSum) -> Arrival:
        """Two rounds of messages, of which a group that wants no whole sum needs the first.

        With NCCL both are queued at once. With gloo the second leaves when a sum is awaited, that of all sums
        before any is waited for; `soaprl.runtime.check_shared` says why nobody waits for ever.
        """
        first = self._swap(step, encoded.sent)
        if isinstance(step, ScatterGradients):
            return lambda: self._state.enter(step, encoded.own_totals(encoded.added(first())))
        second: list[Callable[[], Tensor]] = []

        def begin_second() -> None:
            row = encoded.encoded(encoded.added(first()))
            second.append(self._swap(step, row.expand(len(step.group), -1)))

        if self._nccl:
            begin_second()
        else:
            self._first_rounds.append(begin_second)

        def arrive() -> None:
            for begin in self._first_rounds:
                begin()
            self._first_rounds.clear()
            self._state.enter(step, encoded.totals(second[0]()))

        return arrive

    def _swap(self, step: Collective, rows: Tensor) -> Callable[[], Tensor]:
        """Sends each rank of the group its row; gives, when called, the rows that they sent, in order."""
        sent = rows.to(self._wire)
        received = torch.empty_like(sent, memory_format=torch.contiguous_format)
        place = step.group.index(self._groups.rank)
        received[place] = sent[place]
        others = [(k, peer) for k, peer in enumerate(step.group) if k != place]
        works = self._posted(
            step.id, [(peer, sent[k]) for k, peer in others], [(peer, received[k]) for k, peer in others]
        )

        def arrived() -> Tensor:
            for work in works:
                self._wait(work)
            return received.to(self._state.device)

        return arrived

    def _scatter(self, step: ScatterGradients) -> Arrival:
        """Everybody sends to each rank its parts, which that rank sums, always in the same order."""
        sent, place = self._summands(step), step.group.index(self._groups.rank)
        received = self._like(step, sent)
        with _links():
            work = dist.all_to_all_single(received, sent, group=self._groups[step.group], async_op=True)

        def arrive() -> None:
            self._wait(work)
            totals = shaped(received.sum(0), step.parts[place])
            self._state.enter(step, self._here(totals))

        return arrive

    def _summands(self, step: ScatterGradients) -> Tensor:
        """What is sent to each rank, one row for each: the gradient itself where it is in this order."""
        contents = self._state.contribution(step)
        if self._wire == self._state.device and all(len(own) == 1 for own in step.parts):
            rows = in_a_row(contents)
            if rows is not None:
                # The rank has given it up, so that nothing writes to it while it is on its way.
                return rows
        buffer = self._parts(step)
        torch._foreach_copy_(buffer.contents, contents)
        return buffer.packed

    def _gather(self, step: GatherParameters) -> Arrival:
        place = step.group.index(self._groups.rank)
        landing = self._state.landing(step) if self._wire == self._state.device else None
        if landing is not None:
            with _links():
                work = dist.all_gather_single(
                    landing.view(-1), landing[place], group=self._groups[step.group], async_op=True
                )

            def land() -> None:
                self._wait(work)
                self._state.landed(step)

            return land
        buffer = self._parts(step)
        own = buffer.packed[place]
        if step.parts[place]:
            torch._foreach_copy_(shaped(own, step.parts[place]), self._state.contribution(step))
        with _links():
            work = dist.all_gather_single(
                buffer.packed.view(-1), own, group=self._groups[step.group], async_op=True
            )

        def arrive() -> None:
            self._wait(work)
            self._state.enter(step, self._here(buffer.contents))

        return arrive

    def _parts(self, step: ScatterGradients | GatherParameters) -> PartsBuffer:
        """The buffer of a step; where memory is what sharding is for, it has none between iterations."""
        if self._state.sharding.level > 1:
            return PartsBuffer(self._state.graph, step.parts, self._wire)
        if step.id not in self._shards:
            self._shards[step.id] = PartsBuffer(self._state.graph, step.parts, self._wire)
        return self._shards[step.id]

    def _like(self, step: ScatterGradients, packed: Tensor) -> Tensor:
        """Where others' summands arrive; kept between iterations where buffers are."""
        if self._state.sharding.level > 1:
            return torch.empty_like(packed)
        if step.id not in self._arriving:
            self._arriving[step.id] = torch.empty_like(packed)
        return self._arriving[step.id]

    def _here(self, contents: list[Tensor]) -> list[Tensor]:
        """Contents on the rank's own device."""
        if self._wire == self._state.device:
            return contents
        return [content.to(self._state.device) for content in contents]

    def _wait(self, work: dist.Work | None) -> None:
        assert work is not None, "this rank is in the group"
        with _links():
            if self._nccl:
                work.wait()
            else:
                work.wait(self._timeout)


@contextmanager
def _links() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LinkError(str(error)) from error
