"""What the ranks of a job know of each other: signs of life, and the first failure.

Each rank tells the job's store, several times within the timeout, that it lives and where it is in its
program. Nobody reads that while all is well. A rank that waits in vain, or whose connection breaks, looks for
the note of a rank that failed before; if there is none, it finds out who gives no sign of life, or who is
behind the others, and leaves the note itself. So all ranks that are left end with the same words.
"""

import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from typing import NamedTuple, Protocol

from soaprl.runtime.tapes import Position

_NOTE = "soaprl/failure"
_BEAT = "soaprl/alive/{}"
_READ = "soaprl/read/{}"
# Signs of life within the timeout, and the longest time between two.
_BEATS = 10
_LONGEST_BEAT_S = 1.0


class Place(NamedTuple):
    """Where a rank is.

    Attributes:
        iteration: Which iteration, from 0.
        step: Index of the step in the rank's program; one past the last between iterations.
        waiting: Whether it waits for other ranks there.
    """

    iteration: int
    step: int
    waiting: bool


def place_of(position: Position) -> Place:
    """The place at which a position is now."""
    return Place(position.iteration, position.step, position.waiting)


class Store(Protocol):
    """What is needed of a store of torch.distributed."""

    def set(self, key: str, value: str, /) -> None:
        """Sets a key."""

    def get(self, key: str, /) -> bytes:
        """The content of a key, once it is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Sets a key if it has the expected content, or is not there; what it then has."""

    def clone(self) -> "Store":
        """Another connection to the same store."""


class Health:
    """This rank's signs of life, and its view of the others.

    Args:
        store: The job's store; None if the job has one process.
        rank: This rank.
        num_ranks: Number of ranks.
        timeout_s: How long a rank waits for another.

    Attributes:
        position: Where this rank is; None before its first iteration.
    """

    def __init__(self, store: Store | None, rank: int, num_ranks: int, *, timeout_s: float) -> None:
        self.position: Position | None = None
        self._rank, self._num_ranks, self._timeout_s = rank, num_ranks, timeout_s
        self._beat_s = min(_LONGEST_BEAT_S, timeout_s / _BEATS)
        self._store = None if num_ranks == 1 else store
        self._closed = threading.Event()
        if self._store is not None:
            # A connection of its own: this thread must not wait for a rendezvous of the main one.
            store = self._store.clone()
            threading.Thread(target=self._live, args=(store,), name="soaprl-alive", daemon=True).start()

    def close(self) -> None:
        """Gives no more signs of life."""
        self._closed.set()

    def _live(self, store: Store) -> None:
        try:
            for number in count():
                where = None if self.position is None else place_of(self.position)
                store.set(_BEAT.format(self._rank), json.dumps([number, where]))
                if self._closed.wait(self._beat_s):
                    return
        except RuntimeError:
            # The store is gone, and with it the job; the main thread will find out by itself.
            return

    def leave_note(self, note: str) -> str:
        """Leaves the note of a failure, unless there is one; the note that is there."""
        if self._store is None:
            return note
        try:
            found = self._store.compare_set(_NOTE, "", note).decode()
            self._store.set(_READ.format(self._rank), "")
        except RuntimeError:
            return note
        return found

    def note(self) -> str | None:
        """The note of the first failure that another rank left, for which this waits two signs of life."""
        if self._store is None:
            return None
        end = time.monotonic() + 2 * self._beat_s
        try:
            while not self._store.check([_NOTE]):
                if time.monotonic() > end:
                    return None
                time.sleep(self._beat_s / 10)
            found = self._store.get(_NOTE).decode()
            self._store.set(_READ.format(self._rank), "")
        except RuntimeError:
            return None
        return found

    def linger(self) -> None:
        """Waits until all that live have read the note, if the store goes when this process does.

        That is rank 0, unless `torchrun` keeps the store.
        """
        kept_elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if self._store is None or self._rank != 0 or kept_elsewhere:
            return
        end, unread = time.monotonic() + self._timeout_s, list(range(1, self._num_ranks))
        with suppress(RuntimeError):
            while time.monotonic() < end:
                unread = [r for r in unread if not self._store.check([_READ.format(r)])]
                if not unread or len(self.silent(unread)[0]) == len(unread):
                    return

    def silent(self, ranks: Iterable[int]) -> tuple[list[int], dict[int, Place | None]]:
        """The ranks that give no sign of life, and where each of `ranks` was when it gave its last.

        If the store itself is gone, nobody can be asked: no rank is silent, and none is anywhere.
        """
        others = [rank for rank in ranks if rank != self._rank]
        try:
            before = {rank: self._last(rank) for rank in others}
            time.sleep(3 * self._beat_s)
            after = {rank: self._last(rank) for rank in others}
        except RuntimeError:
            return [], {}
        return [r for r in others if before[r][0] == after[r][0]], {r: after[r][1] for r in others}

    def _last(self, rank: int) -> tuple[int, Place | None]:
        assert self._store is not None, "a rank that is alone waits for nobody"
        key = _BEAT.format(rank)
        if not self._store.check([key]):
            return -1, None
        number, where = json.loads(self._store.get(key).decode())
        place = None if where is None else Place(iteration=where[0], step=where[1], waiting=where[2])
        return number, place
