"""From a broken wait, or an exception in a step, to one error that names rank, operator and step."""

from collections.abc import Iterable

import torch

from soaprl.errors import ExecutionError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.distributed.groups import Groups
from soaprl.runtime.distributed.health import Place
from soaprl.runtime.distributed.step_names import step_name
from soaprl.runtime.program import Exchange, Program, Shared


class Failures:
    """Makes the errors of one rank.

    Args:
        graph: The operators.
        program: The programs of all ranks.
        groups: The job's process groups, which know what is known of the others.
        timeout_s: How long a rank waits for another.
    """

    def __init__(self, graph: OperatorGraph, program: Program, groups: Groups, *, timeout_s: float) -> None:
        self._graph, self._program, self._groups, self._rank = graph, program, groups, groups.rank
        self._timeout_s = timeout_s

    def of_this_rank(self, place: Place, error: BaseException) -> ExecutionError:
        """The error after a step of this rank raised `error`, which the other ranks will name too."""
        what = "ran out of memory" if _out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}".strip()
        note = f"rank {self._rank} {what} in {self._where(self._rank, place)}: {reason}"
        return self._end(note)

    def of_others(self, place: Place, step: Shared, error: BaseException) -> ExecutionError:
        """The error after waiting for others in `step` did not end well."""
        known = self._groups.health.note()
        if known is None:
            known = self._found_out(place, step, error)
        return self._end(known)

    def elsewhere(self, place: Place, what: str, error: BaseException) -> ExecutionError:
        """The error after waiting for others between iterations, in `what`, did not end well."""
        known = self._groups.health.note()
        if known is None:
            others = [rank for rank in range(self._program.num_ranks) if rank != self._rank]
            silent, _ = self._groups.health.silent(others)
            known = self._lost(silent or others, f"{what} after iteration {place.iteration}", f": {error}")
        return self._end(known)

    def _end(self, note: str) -> ExecutionError:
        """The error with the first note; nobody waits for this rank any longer."""
        first = self._groups.health.leave_note(note)
        self._groups.sever()
        self._groups.health.linger()
        return ExecutionError(first)

    def _found_out(self, place: Place, step: Shared, error: BaseException) -> str:
        involved = _involved(self._rank, step)
        silent, places = self._groups.health.silent(range(self._program.num_ranks))
        number = f"step {step.id} of iteration {place.iteration} ({step_name(self._graph, step)})"
        if not places:
            gone = "rank 0, or the process that keeps the job's store, is gone"
            return f"{gone}: rank {self._rank} noticed in {number}"
        if silent:
            return self._lost(silent, number, self._last_seen(silent, places))
        behind = _behind(involved, places)
        if behind:
            return self._lost(behind, number, self._last_seen(behind, places))
        return f"{self._lost(involved, number, '')}: {error}"

    def _lost(self, ranks: Iterable[int], number: str, seen: str) -> str:
        return f"{_names(ranks)} did not answer in {number} within {self._timeout_s:g} s{seen}"

    def _last_seen(self, ranks: Iterable[int], places: dict[int, Place | None]) -> str:
        seen = []
        for rank in ranks:
            place = places[rank]
            where = "before its first iteration" if place is None else f"in {self._where(rank, place)}"
            seen.append(f"; rank {rank} was last seen {where}")
        return "".join(seen)

    def _where(self, rank: int, place: Place) -> str:
        steps = self._program.ranks[rank].steps
        if place.step >= len(steps):
            return f"iteration {place.iteration}, after its last step"
        return f"iteration {place.iteration}, {step_name(self._graph, steps[place.step])}"


def _involved(rank: int, step: Shared) -> list[int]:
    """The other ranks that `rank` waits for in a step."""
    if isinstance(step, Exchange):
        return sorted({m.peer for m in (*step.receives, *step.sends)})
    return [other for other in step.group if other != rank]


def _behind(ranks: list[int], places: dict[int, Place | None]) -> list[int]:
    """Those that wait for nobody: they are busy, or will never come."""
    return [rank for rank in ranks if not ((place := places.get(rank)) and place.waiting)]


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _names(ranks: Iterable[int]) -> str:
    chosen = [str(rank) for rank in ranks]
    return f"rank {chosen[0]}" if len(chosen) == 1 else f"ranks {', '.join(chosen)}"
