"""Runs tasks and updates by themselves and times them: the same code that a rank runs in a training."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import TypeAlias

import torch
from torch.autograd.graph import get_gradient_edge

from soaprl.cost.profiled.measurement import Extents, Measurement, Setting, UnmeasurableError
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.runtime.freed_memory import keep_freed_memory
from soaprl.runtime.local import PartRun, kernels
from soaprl.runtime.measuring.clocks import Clock, GpuClock, Mark, ProcessorClock, spread_of
from soaprl.runtime.measuring.contents import Regions, index_bounds, output_gradients
from soaprl.runtime.plans import PartPlan
from soaprl.runtime.segments import differentiate

# An optimizer's step is measured with this many parameters of a size, and divided by as many; with fewer
# where they would take more than so many bytes together.
_UPDATED, _UPDATED_BYTES = 4, 2**28
# Of the caches that an iteration has used for other things since the last update.
_CACHE_BYTES = 32 * 2**20
_SEED = 0

# The beginning and end of the forward pass, and of the backward pass.
_Marks: TypeAlias = tuple[Mark, Mark, Mark, Mark]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMeasurer:
    """Measures on this machine; a `soaprl.cost.profiled.Measurer`.

    Attributes:
        setting: What the times hold for; a setting with threads is measured on the CPU.
        warm_up: Runs before the first that counts.
        repeats: Runs that count, at least.
        most_repeats: And at most.
        least_s: Repeats go on until they took this long.
        flush: Whether caches forget between runs of a shard what was used.
    """

    setting: Setting
    warm_up: int = 2
    repeats: int = 5
    most_repeats: int = 30
    least_s: float = 0.03
    flush: bool = False

    @property
    def device(self) -> torch.device:
        """Where shards run."""
        return torch.device("cpu" if self.setting.threads else "cuda")

    def measure_task(self, graph: OperatorGraph, operator: Operator, extents: Extents) -> Measurement:
        """Times of the task of `operator` that has the first `extents` indices of each factor.

        Raises:
            UnmeasurableError: It cannot be run here.
        """
        degrees = tuple(ceil(f.extent / e) for f, e in zip(operator.factors, extents, strict=True))
        with self._prepared():
            plan = PartPlan(operator, degrees, 0, kernels())
            found = tuple(stop - start for start, stop in plan.box)
            if found != extents:
                raise UnmeasurableError(f"no first part of {operator.name!r} has {extents}; closest: {found}")
            regions = self._accepted(graph, plan)
            clock = self._clock(self.flush)
            return self._timed(clock, lambda: _run_task(plan, regions, clock.mark), flush=self.flush)

    def measure_update(self, optimizer: str, num_bytes: int) -> Measurement:
        """Forward time: of the update of parameters of `num_bytes`, beside others in one step.

        Caches always forget before: parameters and the optimizer's state were used last an iteration ago.

        Raises:
            UnmeasurableError: It cannot be run here.
        """
        from soaprl.runtime.launch_job import optimizer_maker

        count = max(1, min(_UPDATED, _UPDATED_BYTES // max(num_bytes, 1)))
        with self._prepared():
            parameters = [
                torch.nn.Parameter(torch.rand(max(1, num_bytes // 4), device=self.device))
                for _ in range(count)
            ]
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            updates = optimizer_maker(optimizer, 1e-6)([(str(k), p) for k, p in enumerate(parameters)])
            clock = self._clock(flush=True)

            def run() -> _Marks:
                start = clock.mark()
                updates.step()
                end = clock.mark()
                return start, end, end, end

            whole = self._timed(clock, run, flush=True)
        return Measurement(
            forward_s=whole.forward_s / count, backward_s=0.0, spread=whole.spread, repeats=whole.repeats
        )

    def _clock(self, flush: bool) -> Clock:
        if self.device.type == "cuda":
            return GpuClock()
        return ProcessorClock(self.setting.threads, _CACHE_BYTES if flush else 4)

    def _accepted(self, graph: OperatorGraph, plan: PartPlan) -> Regions:
        """Contents that the operator takes.

        Tried on the CPU where there are indices: an index out of bounds leaves a GPU unusable.
        """
        operator = plan.operator
        accesses = (*operator.inputs, *operator.buffers)
        indexed = any(graph.tensors[a.tensor].dtype.startswith(("int", "uint")) for a in accesses)
        for bound in index_bounds(operator) if indexed else ():
            tried = Regions(graph, plan, torch.device("cpu"), bound=bound)
            try:
                _run_task(plan, tried, time.perf_counter)
            except (IndexError, RuntimeError):
                continue
            return Regions(graph, plan, self.device, bound=bound)
        return Regions(graph, plan, self.device, bound=1)

    def _timed(self, clock: Clock, run: Callable[[], _Marks], *, flush: bool) -> Measurement:
        for _ in range(self.warm_up):
            run()
        clock.settle()
        forward: list[float] = []
        backward: list[float] = []
        while len(forward) < self.repeats or (
            len(forward) < self.most_repeats and sum(forward) + sum(backward) < self.least_s
        ):
            if flush:
                clock.flush()
            start, middle, again, end = run()
            forward.append(clock.elapsed_s(start, middle))
            backward.append(clock.elapsed_s(again, end))
        return Measurement(
            forward_s=median(forward),
            backward_s=median(backward),
            spread=max(spread_of(forward), spread_of(backward)),
            repeats=len(forward),
        )

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """The threads of the setting, memory and garbage kept, and every failure as `UnmeasurableError`."""
        threads, collecting = torch.get_num_threads(), gc.isenabled()
        if self.setting.threads:
            torch.set_num_threads(self.setting.threads)
        keep_freed_memory()
        gc.disable()
        try:
            with self._dtype():
                yield
        except UnmeasurableError:
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UnmeasurableError(f"{type(error).__name__}: {lines[0] if lines else ''}") from error
        finally:
            torch.set_num_threads(threads)
            if collecting:
                gc.enable()

    @contextmanager
    def _dtype(self) -> Iterator[None]:
        """What matrix units work in."""
        dtype = self.setting.compute_dtype
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        try:
            if dtype in ("bfloat16", "float16"):
                with torch.autocast(self.device.type, dtype=getattr(torch, dtype)):
                    yield
            else:
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def _run_task(plan: PartPlan, regions: Regions, mark: Callable[[], Mark]) -> _Marks:
    """Runs both passes of a task as a rank does, in a graph of its own."""
    operator = plan.operator
    start = mark()
    with torch.set_grad_enabled(operator.has_backward):
        outputs = PartRun(plan, regions.entered(), seed=_SEED).finish()
    middle = mark()
    if not operator.has_backward:
        return start, middle, middle, middle
    given = [
        (get_gradient_edge(output), gradient)
        for output, gradient in zip(outputs, output_gradients(operator, outputs), strict=True)
        if output.requires_grad
    ]
    again = mark()
    differentiate(given)
    return start, middle, again, mark()
