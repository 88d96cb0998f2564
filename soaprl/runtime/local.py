"""Runs one part of an operator on exactly the regions that its rule names.

Local tensors come and go in refined coordinates: one dimension for each refined dimension of the stored
tensor, as long as the region. Each is arranged into the operand that a call wants (`Access.layout`), cropped
to what the call needs, and the calls run in order. All of it is differentiable.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from soaprl.graph.operators import Operator, Ref
from soaprl.runtime.calls import Kernel, LocalCall
from soaprl.runtime.kernels_dense import PLAIN_WHERE_LEAD, dense_kernels
from soaprl.runtime.kernels_losses import loss_kernels
from soaprl.runtime.kernels_plain import plain_kernels
from soaprl.runtime.kernels_random import random_kernels
from soaprl.runtime.kernels_windows import window_kernels
from soaprl.runtime.plans import CallPlan, FetchTensor, PartPlan, apply


def kernels() -> dict[str, Kernel]:
    """The calls that need more than local arguments, by target, with or without its overload."""
    groups = (plain_kernels(), random_kernels(), dense_kernels(), loss_kernels(), window_kernels())
    return {target: kernel for group in groups for target, kernel in group.items()}


def run_part(
    operator: Operator,
    degrees: tuple[int, ...],
    part: int,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    seed: int = 0,
    table: Mapping[str, Kernel] | None = None,
) -> list[Tensor]:
    """The outputs of one part.

    Args:
        operator: What to run.
        degrees: Number of parts of each factor.
        part: Which part, row-major.
        inputs: For each input access, exactly its region in refined coordinates.
        parameters: The same for each parameter access.
        buffers: The same for each buffer access.
        seed: Of the random numbers of the whole iteration (dropout).
        table: Kernels, as `kernels` gives them; built anew if None.

    Returns:
        For each output access, the region that the part writes, in refined coordinates; a summand (see
        `Access.combine`) where the output omits a factor.
    """
    run = PartRun(PartPlan(operator, degrees, part), inputs, parameters, buffers, seed=seed)
    table = kernels() if table is None else table
    for _ in operator.body:
        run.advance(table)
    return run.outputs()


class PartRun:
    """One part of an operator, call by call.

    Args:
        plan: Of the part.
        inputs: As for `run_part`.
        parameters: As for `run_part`.
        buffers: As for `run_part`.
        seed: As for `run_part`.

    Attributes:
        results: Those of the calls so far.
    """

    def __init__(
        self,
        plan: PartPlan,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        *,
        seed: int = 0,
    ) -> None:
        self.results: list[list[Tensor]] = []
        self._plan, self._seed = plan, seed
        self._device = next((t.device for t in (*inputs, *parameters, *buffers)), torch.get_default_device())
        self._held = {
            "input": self._operands("input", inputs),
            "parameter": self._operands("parameter", parameters),
            "buffer": self._operands("buffer", buffers),
        }

    def _operands(self, group: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for shape, steps, tensor in zip(
            self._plan.shapes[group], self._plan.arranged[group], tensors, strict=True
        ):
            assert tensor.shape == shape, f"expected the region {shape}, found {tuple(tensor.shape)}"
            found.append(apply(steps, tensor))
        return found

    @property
    def finished(self) -> bool:
        """Whether all calls have run."""
        return len(self.results) == len(self._plan.calls)

    def next_call(self) -> LocalCall:
        """The next call of the body, bound to the part's tensors."""
        return self._plan.calls[len(self.results)].bind(self._fetch, seed=self._seed, device=self._device)

    def advance(self, table: Mapping[str, Kernel]) -> None:
        """Runs the next call."""
        plan = self._plan.calls[len(self.results)]
        self.results.append(run_call(plan, self._fetch, seed=self._seed, device=self._device, table=table))

    def outputs(self) -> list[Tensor]:
        """What the part writes, once all calls have run."""
        found = []
        for call, result, shape, steps in self._plan.outputs:
            tensor = self.results[call][result]
            assert tensor.shape == shape, f"the region is {shape}, found {tuple(tensor.shape)}"
            found.append(apply(steps, tensor))
        return found

    def _fetch(self, ref: Ref) -> Tensor:
        if ref.source == "call":
            return self.results[ref.index][ref.result]
        return self._held[ref.source][ref.index]


def run_call(
    plan: CallPlan,
    fetch: FetchTensor,
    *,
    seed: int,
    device: torch.device,
    table: Mapping[str, Kernel],
) -> list[Tensor]:
    """The results of one call.

    Args:
        plan: What to call.
        fetch: The tensor that a reference stands for.
        seed: Of the random numbers of the whole iteration.
        device: Where new tensors are made.
        table: Kernels, as `kernels` gives them.
    """
    # An in-place call has the kernel of its out-of-place form; it has a copy of what it would change.
    kernel = table.get(plan.target) or table.get(plan.target.rsplit(".", 1)[0].rstrip("_"))
    if kernel is None or (plan.lead and kernel in PLAIN_WHERE_LEAD):
        found = plan.run(fetch, device)
    else:
        found = kernel(plan.bind(fetch, seed=seed, device=device))
    results = list(found)[: len(plan.shapes)] if isinstance(found, tuple | list) else [found]
    for tensor, shape in zip(results, plan.shapes, strict=True):
        assert tensor.shape == shape, f"{plan.name}: expected {shape}, found {tuple(tensor.shape)}"
    return results
