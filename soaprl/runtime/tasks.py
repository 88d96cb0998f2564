"""A task that runs in stages, or whose batch statistics are recorded; others only run (`local.PartRun`).

An operator with synchronized batch normalization runs in stages; see `soaprl.runtime.program.Forward`. The
combined table enters the next stage as something to differentiate with respect to, and the own row left the
stage before as something to differentiate; in between lies the reduction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from soaprl.runtime.calls import LocalCall
from soaprl.runtime.local import PartRun
from soaprl.runtime.plans import PartPlan
from soaprl.runtime.segments import Output, differentiate, enter, gradients_of
from soaprl.runtime.statistics import batch_statistics, normalize, statistics_row


class StagedTask:
    """One such task of one iteration.

    Args:
        plan: Its part of its operator.
        regions: What it reads: inputs, parameters, buffers; what is to be differentiated in its graph.
        seed: Of the random numbers of the iteration.
        stops: The calls of the body at whose statistics the task waits for others.
        recorded: The calls whose batch statistics are to be recorded.

    Attributes:
        statistics: Mean and unbiased variance of each recorded call, by call.
    """

    def __init__(
        self,
        plan: PartPlan,
        regions: Sequence[Tensor],
        *,
        seed: int,
        stops: Sequence[int],
        recorded: Sequence[int],
    ) -> None:
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self._stops, self._recorded = tuple(stops), frozenset(recorded)
        self._rows: list[GradientEdge | None] = []
        self._tables: list[GradientEdge] = []
        self._row_gradients: list[Tensor] = []
        self._run: PartRun | None = PartRun(plan, regions, seed=seed)

    def forward(self, combined: Tensor | None = None) -> list[Tensor]:
        """Runs to the next stage.

        Args:
            combined: In any stage but the first, the table of statistics, shape [parts, 3, channels].

        Returns:
            In the last stage what the task writes, for each output, in its graph; before, one row of
            statistics.
        """
        run = self._run
        assert run is not None, "a task runs forward once"
        if combined is not None:
            self._resume(run, combined)
        while not run.finished:
            call = run.num_done
            if call in self._stops:
                row = statistics_row(run.next_call().local("input"))
                self._rows.append(get_gradient_edge(row) if row.requires_grad else None)
                return [row.detach()]
            if call in self._recorded:
                run.enter([self._recording(call, run.next_call())])
            else:
                run.advance()
        self._run = None
        return run.outputs()

    def _resume(self, run: PartRun, combined: Tensor) -> None:
        """Passes a synchronized normalization."""
        call = run.num_done
        if call in self._recorded:
            self.statistics[call] = batch_statistics(combined)
        if torch.is_grad_enabled():
            # Its gradient is asked for by `backward_statistics`.
            combined = enter(combined, lambda gradient: None)
            self._tables.append(get_gradient_edge(combined))
        run.enter([normalize(run.next_call(), combined)])

    def _recording(self, call: int, local: LocalCall) -> Tensor:
        """A batch normalization of the part by itself, whose statistics are recorded."""
        mean, variance = (torch.zeros_like(local[name]) for name in ("running_mean", "running_var"))
        result = local.tensor(running_mean=mean, running_var=variance, momentum=1.0)
        self.statistics[call] = (mean, variance)
        return result

    def backward_statistics(self, outputs: Sequence[Output]) -> Tensor | None:
        """The gradient of the last table that no `backward_statistics` has been asked for yet.

        Args:
            outputs: What the task wrote, with gradients, or None for zero.

        Returns:
            This task's summand, shape [parts, 3, channels], or None for zero.
        """
        depth = len(self._tables) - len(self._row_gradients)
        (found,) = gradients_of([*outputs, *self._given(depth)], [self._tables[depth - 1]])
        return found

    def enter_row_gradient(self, gradient: Tensor) -> None:
        """Takes the gradient of the row that the table of the last `backward_statistics` was made of."""
        self._row_gradients.insert(0, gradient)

    def backward(self, outputs: Sequence[Output]) -> None:
        """The rest of the backward pass; see `soaprl.runtime.segments.differentiate`."""
        differentiate([*outputs, *self._given(0)])
        self._rows, self._tables = [], []

    def _given(self, depth: int) -> list[Output]:
        """The rows from number `depth` on, with their gradients."""
        rows = self._rows[depth:]
        return list(zip(rows, self._row_gradients[-len(rows) :], strict=True))
