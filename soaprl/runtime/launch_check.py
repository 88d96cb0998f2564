"""Compares a run, step by step, with training of the original model in one process."""

import copy
import sys
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from soaprl.graph.capture.export import WithStandInLoss
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import inside
from soaprl.runtime.launch_job import Batch, Check, Difference, Job, Model, optimizer_maker
from soaprl.runtime.model_state import input_tensors, module_tensors
from soaprl.runtime.rank import RankState
from soaprl.runtime.reference import run_graph

# Rounding over a few steps of training: a thousand and a hundred million units in the last place.
TOLERANCES = {"float32": 1e-3, "float64": 1e-8}
# With arithmetic in bfloat16, of 8 bits, a few units in the last place, in sums that differ in their order;
# with gradients that travel in 16 bits, too.
_SHORT_TOLERANCE = 5e-2
# Gradients that should be 0 are compared with this part of the largest one.
_FLOOR = 1e-2


class Reference:
    """Training of the original model beside a run.

    A model that draws random numbers (dropout) draws others in one process than split; for such a model the
    captured graph, not split, is run with the random numbers of the run.

    Args:
        job: The run.
        graph: The captured model.
        model: The model with its initial parameters, which are copied.
    """

    def __init__(self, job: Job, graph: OperatorGraph, model: Model) -> None:
        self._job, self._graph = job, graph
        self._module = copy.deepcopy(model.module)
        self._random = _is_random(self._module, model)
        short = job.precision == "bfloat16" or job.compression != "none"
        self._tolerance = _SHORT_TOLERANCE if short else TOLERANCES[job.dtype]
        make = optimizer_maker(job.optimizer, job.learning_rate)
        self._optimizer = make([(n, p) for n, p in self._module.named_parameters() if p.requires_grad])
        self._loss: Difference | None = None
        self._gradients: dict[str, Difference] = {}
        self._agrees = True

    def compare(
        self,
        batch: Batch,
        step: int,
        loss: float,
        states: Iterable[RankState],
    ) -> None:
        """Trains one step, and compares with what the ranks of this process have after it."""
        self._optimizer.zero_grad(set_to_none=True)
        short = self._job.precision == "bfloat16"
        with torch.autocast(self._job.device, torch.bfloat16, enabled=short):
            expected = self._forward(batch, step)
        expected.backward()  # type: ignore[no-untyped-call]
        tolerance = self._tolerance
        found = _difference(
            "loss", step, 0, torch.tensor(loss, dtype=torch.float64), expected.detach().double(), 0.0
        )
        self._agrees &= found.relative <= tolerance
        self._loss = _larger(self._loss, found)
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self._module.named_parameters(remove_duplicate=False)
        }
        floor = _FLOOR * max((g.abs().max().item() for g in gradients.values() if g.numel()), default=0.0)
        for state in states:
            for name, pair, whole in self._owned(state, gradients):
                found = _difference(name, step, state.program.rank, *pair, max(whole, floor))
                self._agrees &= found.relative <= tolerance
                self._gradients[name] = _larger(self._gradients.get(name), found)
        self._optimizer.step()

    def _owned(
        self, state: RankState, gradients: dict[str, Tensor]
    ) -> Iterable[tuple[str, tuple[Tensor, Tensor], float]]:
        for block in state.program.owned:
            stored = self._graph.tensors[block.tensor]
            if stored.requires_grad:
                whole = gradients[stored.name]
                box = tuple((0, extent) for extent in stored.refined_shape)
                expected = whole.view(stored.refined_shape)[inside(block.box, box)]
                yield stored.name, (state.gradient(block).cpu(), expected), whole.abs().max().item()

    def _forward(self, batch: Batch, step: int) -> Tensor:
        args, kwargs = batch
        if not self._random:
            return _loss(self._module, args, kwargs)
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        sources = module_tensors(self._graph, self._module)
        sources |= {i: parameters[t.name] for i, t in enumerate(self._graph.tensors) if t.name in parameters}
        sources |= input_tensors(self._graph, pytree.tree_leaves(batch))
        whole = [(1,) * len(operator.factors) for operator in self._graph.operators]
        seed = (self._job.seed << 32) + step - 1
        return run_graph(self._graph, whole, sources, seed=seed)[self._graph.loss].reshape(())

    def result(self) -> Check:
        """The comparison so far."""
        assert self._loss is not None, "there was a step"
        ordered = sorted(self._gradients.values(), key=lambda d: d.relative, reverse=True)
        against = "the captured graph, not split" if self._random else "the original model"
        return Check(
            loss=self._loss,
            gradients=tuple(ordered),
            tolerance=self._tolerance,
            agrees=self._agrees,
            against=against,
        )


def merged_checks(checks: Sequence[Check]) -> Check:
    """The checks of several processes as one."""
    found: dict[str, Difference] = {}
    for difference in (d for check in checks for d in check.gradients):
        found[difference.what] = _larger(found.get(difference.what), difference)
    return Check(
        loss=max((c.loss for c in checks), key=lambda d: d.relative),
        gradients=tuple(sorted(found.values(), key=lambda d: d.relative, reverse=True)),
        tolerance=checks[0].tolerance,
        agrees=all(check.agrees for check in checks),
        against=checks[0].against,
    )


def _loss(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    output = module(*args, **kwargs)
    if isinstance(output, Tensor) and output.numel() == 1 and output.is_floating_point():
        return output.reshape(())
    return WithStandInLoss(module)(*args, **kwargs).reshape(())  # type: ignore[no-any-return]


def _is_random(module: nn.Module, model: Model) -> bool:
    """Whether two calls with the same batch give different losses."""
    losses = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            losses.append(_loss(copy.deepcopy(module), model.args, dict(model.kwargs)).item())
    return losses[0] != losses[1]


def _difference(what: str, step: int, rank: int, found: Tensor, expected: Tensor, scale: float) -> Difference:
    absolute = (found.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    # A difference that is no number is never within a tolerance.
    absolute = absolute if isfinite(absolute) else sys.float_info.max
    scale = max(scale, expected.abs().max().item() if expected.numel() else 0.0, sys.float_info.min)
    relative = min(absolute / scale, sys.float_info.max)
    return Difference(what=what, step=step, rank=rank, absolute=absolute, relative=relative)


def _larger(known: Difference | None, found: Difference) -> Difference:
    return found if known is None or found.relative > known.relative else known
