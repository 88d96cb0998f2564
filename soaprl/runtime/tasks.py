"""One task between its forward and its backward pass.

Backward is explicit: the forward pass keeps PyTorch's graph of the local computation and nothing else (what
was read and written is held only as far as that graph saved it), and the backward pass asks it for the
gradients of exactly what the task read.

An operator with synchronized batch normalization runs in stages; see `soaprl.runtime.program.Forward`. The
combined table enters the next stage as something to differentiate with respect to, and the own row left the
stage before as something to differentiate; in between lies the reduction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from soaprl.runtime.calls import Kernel, LocalCall
from soaprl.runtime.local import PartRun
from soaprl.runtime.plans import PartPlan
from soaprl.runtime.statistics import batch_statistics, normalize, statistics_row


@dataclass(frozen=True, slots=True)
class Leaf:
    """Content of parameters as the beginning of graphs; it may begin many of them.

    Attributes:
        tensor: The content.
        edge: Names it in a graph; None if it is not differentiable.
    """

    tensor: Tensor
    edge: GradientEdge | None


def leaf_of(tensor: Tensor) -> Leaf:
    """A leaf that shares the content of a tensor, which may be overwritten between iterations."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return Leaf(tensor, None)
    tensor.requires_grad_()
    return Leaf(tensor, get_gradient_edge(tensor))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInputs:
    """What a task reads: for each access of the operator its region, in refined coordinates.

    Attributes:
        inputs: Of the inputs.
        parameters: Of the parameters, as leaves.
        buffers: Of the buffers.
        input_gradients: For each input, whether its gradient is wanted.
        parameter_gradients: The same for each parameter.
    """

    inputs: Sequence[Tensor]
    parameters: Sequence[Leaf]
    buffers: Sequence[Tensor]
    input_gradients: Sequence[bool]
    parameter_gradients: Sequence[bool]


class TaskRun:
    """One task of one iteration.

    Args:
        plan: Its part of its operator.
        read: What it reads.
        table: Kernels, as `soaprl.runtime.local.kernels` gives them.
        seed: Of the random numbers of the iteration.
        stops: The calls of the body at whose statistics the task waits for others.
        recorded: The calls whose batch statistics are to be recorded.

    Attributes:
        statistics: Mean and unbiased variance of each recorded call, by call.
    """

    def __init__(
        self,
        plan: PartPlan,
        read: TaskInputs,
        table: Mapping[str, Kernel],
        *,
        seed: int,
        stops: Sequence[int] = (),
        recorded: Sequence[int] = (),
    ) -> None:
        operator = self.operator = plan.operator
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self._table, self._stops, self._recorded = table, tuple(stops), frozenset(recorded)
        self._sources: list[tuple[str, int, GradientEdge]] = []
        self._outputs: list[GradientEdge | None] = []
        self._rows: list[GradientEdge | None] = []
        self._tables: list[GradientEdge] = []
        self._row_gradients: list[Tensor] = []
        with torch.set_grad_enabled(operator.has_backward):
            self._run: PartRun | None = PartRun(
                plan,
                self._entered_inputs(read),
                self._entered_parameters(read),
                read.buffers,
                seed=seed,
            )

    def _entered_inputs(self, read: TaskInputs) -> list[Tensor]:
        entered = list(read.inputs)
        for position, wants in enumerate(read.input_gradients):
            if wants and self.operator.has_backward:
                entered[position] = source = _source(entered[position])
                self._sources.append(("input", position, _source_edge(source)))
        return entered

    def _entered_parameters(self, read: TaskInputs) -> list[Tensor]:
        entered = []
        for position, (leaf, wants) in enumerate(zip(read.parameters, read.parameter_gradients, strict=True)):
            if wants and self.operator.has_backward and leaf.edge is not None:
                self._sources.append(("parameter", position, leaf.edge))
                entered.append(leaf.tensor)
            else:
                entered.append(leaf.tensor.detach())
        return entered

    def forward(self, combined: Tensor | None = None) -> list[Tensor]:
        """Runs to the next stage.

        Args:
            combined: In any stage but the first, the table of statistics, shape [parts, 3, channels].

        Returns:
            In the last stage what the task writes, for each output; before, one row of statistics.
        """
        run = self._run
        assert run is not None, "a task runs forward once"
        with torch.set_grad_enabled(self.operator.has_backward):
            if combined is not None:
                self._resume(run, combined)
            while not run.finished:
                call = len(run.results)
                if call in self._stops:
                    row = statistics_row(run.next_call().local("input"))
                    self._rows.append(_edge(row))
                    return [row.detach()]
                if call in self._recorded:
                    run.results.append([self._recording(call, run.next_call())])
                else:
                    run.advance(self._table)
            written = run.outputs()
        self._outputs = [_edge(output) for output in written]
        self._run = None
        return [output.detach() for output in written]

    def _resume(self, run: PartRun, combined: Tensor) -> None:
        """Passes a synchronized normalization."""
        call = len(run.results)
        if call in self._recorded:
            self.statistics[call] = batch_statistics(combined)
        if self.operator.has_backward:
            combined = _source(combined)
            self._tables.append(_source_edge(combined))
        run.results.append([normalize(run.next_call(), combined)])

    def _recording(self, call: int, local: LocalCall) -> Tensor:
        """A batch normalization of the part by itself, whose statistics are recorded."""
        mean, variance = (torch.zeros_like(local[name]) for name in ("running_mean", "running_var"))
        result = local.tensor(running_mean=mean, running_var=variance, momentum=1.0)
        self.statistics[call] = (mean, variance)
        return result

    def backward_statistics(self, gradients: Sequence[Tensor | None]) -> Tensor | None:
        """The gradient of the last table that no `backward_statistics` has been asked for yet.

        Args:
            gradients: For each output, its gradient, or None for zero.

        Returns:
            This task's summand, shape [parts, 3, channels], or None for zero.
        """
        depth = len(self._tables) - len(self._row_gradients)
        outputs, given = self._given(gradients, depth)
        if not outputs:
            return None
        (found,) = torch.autograd.grad(
            outputs, [self._tables[depth - 1]], given, allow_unused=True, retain_graph=True
        )
        return found

    def enter_row_gradient(self, gradient: Tensor) -> None:
        """Takes the gradient of the row that the table of the last `backward_statistics` was made of."""
        self._row_gradients.insert(0, gradient)

    def backward(self, gradients: Sequence[Tensor | None]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The gradients of what the task read: of inputs and of parameters, by position; zeros left out."""
        outputs, given = self._given(gradients, 0)
        found: dict[str, dict[int, Tensor]] = {"input": {}, "parameter": {}}
        if outputs and self._sources:
            results = torch.autograd.grad(
                outputs, [edge for _, _, edge in self._sources], given, allow_unused=True
            )
            for (group, position, _), gradient in zip(self._sources, results, strict=True):
                if gradient is not None:
                    found[group][position] = gradient
        self._outputs, self._rows, self._tables, self._sources = [], [], [], []
        return found["input"], found["parameter"]

    def _given(
        self, gradients: Sequence[Tensor | None], depth: int
    ) -> tuple[list[GradientEdge], list[Tensor]]:
        """What to differentiate, with its gradients: the outputs, and the rows from number `depth` on."""
        pairs = [
            *zip(self._outputs, gradients, strict=True),
            *zip(self._rows[depth:], self._row_gradients[-len(self._rows[depth:]) :], strict=True),
        ]
        kept = [(edge, gradient) for edge, gradient in pairs if edge is not None and gradient is not None]
        return [edge for edge, _ in kept], [gradient for _, gradient in kept]


def _source(tensor: Tensor) -> Tensor:
    """A tensor as the beginning of a graph that can name it without holding its content."""
    leaf = tensor.detach().requires_grad_()
    source = leaf.view_as(leaf)
    # The graph holds the leaf; what `source` shares with it lives as long as something saved that.
    leaf.data = tensor.new_empty(0)
    return source


def _source_edge(source: Tensor) -> GradientEdge:
    assert source.grad_fn is not None, "sources are differentiable"
    return GradientEdge(source.grad_fn, source.output_nr)


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None
