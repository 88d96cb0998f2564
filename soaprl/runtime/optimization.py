"""The optimizer of one rank: any optimizer of PyTorch on the blocks of parameters that the rank updates.

Those are the blocks that it holds or, where state is sharded, its parts of them, so that it has optimizer
state for these alone. An optimizer that treats every element by itself gives on blocks what it gives on whole
parameters. One that does not (a norm of the parameter, factored statistics) is refused unless every rank
updates parameters whole.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from soaprl.errors import ExecutionError
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.program import Update
from soaprl.runtime.rank import RankState

MakeOptimizer: TypeAlias = Callable[[Sequence[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
MakeSchedule: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]

_ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
# What `torch.nn.utils.clip_grad_norm_` adds to the norm.
_CLIP_EPSILON = 1e-6


class RankOptimizer:
    """The optimizer of one rank.

    Args:
        state: The rank.
        make_optimizer: Called with the names and blocks that the rank trains, in the order of its program.
        make_schedule: Called with the optimizer; its result steps once an iteration.
        max_gradient_norm: Gradients are scaled so that the norm of all, over all ranks, is at most this.

    Attributes:
        optimizer: The optimizer; None on a rank that trains nothing.

    Raises:
        ExecutionError: The optimizer needs whole parameters, and a rank updates only parts of some.
    """

    def __init__(
        self,
        state: RankState,
        make_optimizer: MakeOptimizer,
        make_schedule: MakeSchedule | None = None,
        max_gradient_norm: float | None = None,
    ) -> None:
        self._state = state
        self._max_gradient_norm = max_gradient_norm
        self._blocks = [b for s in state.program.steps if isinstance(s, Update) for b in s.parameters]
        self.optimizer: torch.optim.Optimizer | None = None
        self._schedule: LRScheduler | None = None
        if self._blocks:
            self.optimizer = make_optimizer(self._named())
            self._check_elementwise(self.optimizer)
            self._schedule = None if make_schedule is None else make_schedule(self.optimizer)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters; of several blocks of one tensor, the later ones are numbered."""
        seen: dict[int, int] = {}
        named = []
        for block in self._blocks:
            name = self._state.graph.tensors[block.tensor].name
            count = seen[block.tensor] = seen.get(block.tensor, 0) + 1
            parameter = self._state.updated[block]
            named.append((name if count == 1 else f"{name}#{count}", parameter))
        return named

    def _check_elementwise(self, optimizer: torch.optim.Optimizer) -> None:
        kind = type(optimizer)
        if kind.__module__.startswith("torch.optim") and kind.__name__ in _ELEMENTWISE:
            return
        # All ranks look at all, so that all say the same, and none waits for one that has given up.
        for rank, block in self._state.all_updated:
            stored = self._state.graph.tensors[block.tensor]
            if num_elements(block.box) != stored.num_elements:
                raise ExecutionError(
                    f"{kind.__name__} may need whole parameters, and rank {rank} updates only a part of"
                    f" {stored.name!r}: use an optimizer that treats every element by itself"
                    f" ({', '.join(sorted(_ELEMENTWISE))}), or a strategy that neither splits parameters nor"
                    " shards their state"
                )

    def step(self) -> None:
        """Clips, updates, and moves the learning rate on."""
        if self.optimizer is None:
            return
        if self._max_gradient_norm is not None:
            scale = (self._max_gradient_norm / (self._state.gradient_norm + _CLIP_EPSILON)).clamp(max=1.0)
            for block in self._blocks:
                gradient = self._state.updated[block].grad
                assert gradient is not None, "trained blocks have gradients"
                gradient.mul_(scale.to(gradient.dtype))
        self.optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
