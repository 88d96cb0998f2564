"""Runs one part of an operator on exactly the regions that its rule names.

Local tensors come and go in refined coordinates: one dimension for each refined dimension of the stored
tensor, as long as the region. Each is arranged into the operand that a call wants (`Access.layout`), cropped
to what the call needs, and the calls run in order. All of it is differentiable.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from soaprl.graph.operators import Operator
from soaprl.runtime.calls import Kernel, LocalCall
from soaprl.runtime.kernels_dense import dense_kernels
from soaprl.runtime.kernels_losses import loss_kernels
from soaprl.runtime.kernels_plain import plain_kernels
from soaprl.runtime.kernels_random import random_kernels
from soaprl.runtime.kernels_windows import window_kernels
from soaprl.runtime.plans import PartPlan, apply


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
    plan = PartPlan(operator, degrees, part, kernels() if table is None else table)
    return PartRun(plan, (*inputs, *parameters, *buffers), seed=seed).finish()


class PartRun:
    """One part of an operator, call by call.

    Args:
        plan: Of the part.
        regions: What the part reads, in refined coordinates: inputs, parameters, buffers.
        seed: As for `run_part`.

    Attributes:
        slots: The tensors so far, as `PartPlan` numbers them; None where nothing needs one any more.
        num_done: The calls so far.
    """

    __slots__ = ("_checked", "_device", "_plan", "_seed", "num_done", "slots")

    def __init__(self, plan: PartPlan, regions: Sequence[Tensor], *, seed: int = 0) -> None:
        self._plan, self._seed, self.num_done = plan, seed, 0
        self.slots: list[Any] = list(regions)
        slots = self.slots
        self._device = slots[0].device if slots else None
        self._checked = plan.checked
        if not self._checked:
            for shape, tensor in zip(plan.shapes, slots, strict=True):
                assert tensor.shape == shape, f"expected the region {shape}, found {tuple(tensor.shape)}"
        for slot, steps in plan.arranged:
            slots[slot] = apply(steps, slots[slot])

    @property
    def finished(self) -> bool:
        """Whether all calls have run."""
        return self.num_done == len(self._plan.calls)

    def next_call(self) -> LocalCall:
        """The next call of the body, bound to the part's tensors."""
        return self._plan.calls[self.num_done].bind(self.slots, self._seed, self._device)

    def enter(self, results: Sequence[Tensor]) -> None:
        """Takes the results of the next call."""
        if not self._checked:
            self._plan.calls[self.num_done].check(results)
        slots = self.slots
        slots += results
        for slot in self._plan.freed[self.num_done]:
            slots[slot] = None
        self.num_done += 1

    def advance(self) -> None:
        """Runs the next call."""
        self.enter(self._plan.calls[self.num_done].run(self.slots, self._seed, self._device))

    def finish(self) -> list[Tensor]:
        """Runs the calls that are left; what the part writes."""
        slots, plan = self.slots, self._plan
        if not self._checked:
            while not self.finished:
                self.advance()
            return self.outputs()
        for call, freed in plan.work[self.num_done :]:
            slots += call(slots, self._seed, self._device)
            for slot in freed:
                slots[slot] = None
        self.num_done = len(plan.calls)
        return self.outputs()

    def outputs(self) -> list[Tensor]:
        """What the part writes, once all calls have run."""
        found = []
        for slot, shape, steps in self._plan.outputs:
            tensor = self.slots[slot]
            if not self._checked:
                assert tensor.shape == shape, f"the region is {shape}, found {tuple(tensor.shape)}"
            found.append(apply(steps, tensor) if steps else tensor)
        self._plan.checked = True
        return found
