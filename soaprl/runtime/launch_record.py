"""What a rank is doing, for whoever has to say where it ended, and what it did, as a trace.

The methods of a rank's state that carry out steps, or say what does, are wrapped, one rank at a time; an
executor sees no difference. On a GPU a recorded duration is that of the launch. Backward passes of a segment
(`soaprl.runtime.segments`) are one pass, recorded with the first of its tasks.
"""

import mmap
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.launch_job import Event
from soaprl.runtime.optimization import RankOptimizer
from soaprl.runtime.program import (
    Backward,
    Block,
    Forward,
    GatherParameters,
    Message,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ScatterGradients,
    SumPartials,
    UpdateBuffers,
)
from soaprl.runtime.rank import RankState
from soaprl.runtime.rank_tasks import Run

# Bytes of the place that a rank leaves in its file: enough for a name, and written in one go.
PLACE_BYTES = 256
# Of the last iterations only, so that a long run can be recorded.
RECORDED_STEPS = 3

_METHODS = {
    "load_inputs": "load",
    "make_constants": "load",
    "outgoing": "exchange",
    "incoming": "exchange",
    "contribution": "reduce",
    "enter": "reduce",
    "landing": "reduce",
    "landed": "reduce",
}
# What takes what other ranks sent: the time before it was spent waiting.
_ARRIVALS = ("incoming", "enter", "landed")


class Recorder:
    """Keeps what ranks do.

    Args:
        graph: The operators.
        place: A file for the place that the process is at; None for none.
        events: Whether to keep events for a trace.

    Attributes:
        step: The iteration at hand, from 1; set by the training loop.
        place: What the process does, or did last.
        rank: Whose work that is.
    """

    def __init__(self, graph: OperatorGraph, *, place: Path | None = None, events: bool = False) -> None:
        self._graph = graph
        self.step, self.place, self.rank = 0, "the beginning", 0
        self._names: dict[int, tuple[object, str]] = {}
        self._origin_s = time.perf_counter()
        self._events: deque[tuple[int, list[Event]]] | None = deque(maxlen=RECORDED_STEPS) if events else None
        self._map: mmap.mmap | None = None
        if place is not None:
            place.write_bytes(b" " * PLACE_BYTES)
            with place.open("r+b") as stream:
                self._map = mmap.mmap(stream.fileno(), PLACE_BYTES)

    def attach(self, state: RankState, optimizer: RankOptimizer) -> None:
        """Follows a rank."""
        rank, self._graph = state.program.rank, state.graph
        for method, kind in _METHODS.items():
            self._wrap(state, method, rank, kind)
        self._wrap_passes(state)
        self._wrap(optimizer, "step", rank, "update")

    def begin_step(self, step: int) -> None:
        """An iteration begins."""
        self.step = step
        self.at("")
        if self._events is not None:
            self._events.append((step, []))

    def at(self, what: str) -> None:
        """Says what the process does now."""
        self.place = f"step {self.step}" + (f", {what}" if what else "")
        if self._map is not None:
            self._map[:] = self.place.encode()[:PLACE_BYTES].ljust(PLACE_BYTES)

    @property
    def events(self) -> tuple[Event, ...]:
        """What was kept, by time for each rank."""
        return tuple(event for _, events in self._events or () for event in events)

    def _wrap(self, owner: object, method: str, rank: int, kind: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)
        arrival = method in _ARRIVALS

        def followed(*args: Any, **kwargs: Any) -> Any:
            step = args[0] if args else None
            return self._follow(lambda: original(*args, **kwargs), step, rank, kind, arrival=arrival)

        # On the instance: what else uses the class stays as it is.
        setattr(owner, method, followed)

    def _wrap_passes(self, state: RankState) -> None:
        """Follows what is bound to passes of tasks."""
        forward, backward, rank = state.forward, state.backward, state.program.rank

        def bound_forward(steps: Sequence[tuple[int, Forward, tuple[int, ...]]]) -> Run:
            return partial(self._follow, forward(steps), steps[0][1], rank, "forward")

        def bound_backward(step: Backward) -> Run | None:
            run = backward(step)
            return None if run is None else partial(self._follow, run, step, rank, "backward")

        state.apart = True
        setattr(state, "forward", bound_forward)  # noqa: B010 (a method of one instance)
        setattr(state, "backward", bound_backward)  # noqa: B010

    def _follow(
        self, run: Callable[[], Any], step: object, rank: int, kind: str, *, arrival: bool = False
    ) -> Any:
        name, self.rank = self._name(step, arrival), rank
        self.at(f"{kind} {name}".strip())
        start_s = time.perf_counter()
        result = run()
        if self._events is not None:
            event = Event(
                rank=rank,
                step=self.step,
                kind=kind,
                name=name,
                start_s=start_s - self._origin_s,
                duration_s=time.perf_counter() - start_s,
                arrival=arrival,
            )
            self._events[-1][1].append(event)
        return result

    def _name(self, step: object, arrival: bool) -> str:
        """The name of a step, worked out once: programs are the same in every iteration."""
        if id(step) not in self._names:
            # The step is kept, so that its id stays its own.
            self._names[id(step)] = (step, self._described(step, arrival))
        return self._names[id(step)][1]

    def _described(self, step: object, arrival: bool) -> str:
        operators = self._graph.operators
        match step:
            case Forward() | Backward():
                return f"{operators[step.operator].name}[{step.part}]"
            case Message():
                producer = self._graph.producer[step.pieces[0].tensor]
                way = "from" if arrival else "to"
                return f"{operators[producer].name} {way} rank {step.peer}"
            case SumPartials():
                return f"parts of {operators[step.operator].name}"
            case ReduceStatistics():
                return f"statistics of {operators[step.operator].name}"
            case ReduceLoss():
                return "loss"
            case ReduceNorm():
                return "norm of gradients"
            case ReduceGradients():
                return f"gradients of {self._tensors(step.cells)}"
            case ScatterGradients():
                return f"gradients of parts of {self._tensors(tuple(chain(*step.parts)))}"
            case GatherParameters():
                return f"gathered {self._tensors(tuple(chain(*step.parts)))}"
            case UpdateBuffers():
                return f"running statistics {self._tensor(step.buffers[0])}"
        return ""

    def _tensors(self, blocks: Sequence[Block]) -> str:
        first, *others = dict.fromkeys(self._tensor(block.tensor) for block in blocks)
        return f"{first} and {len(others)} more" if others else first

    def _tensor(self, index: int) -> str:
        return self._graph.tensors[index].name


def read_place(path: Path) -> str:
    """What the process that keeps its place at `path` did last; empty if it never said."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""
