"""What a part of a result depends on is what the rule says it reads, and nothing else.

The whole operator is run twice: once as it is, once with everything replaced that a task does not read. The
task's part of the result must not change. Reductions are read whole here: parts of them are combined.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from random import Random

import pytest
import torch

from soaprl.graph.factors import Span, part_bounds
from soaprl.graph.rules.base import Dim, Rearrange, Reshape, Rule, View
from tests.graph.rule_cases import Called, call, calls, operator, outcomes

Box = dict[str, tuple[int, int]]
_CASES = dict(calls())


@pytest.mark.parametrize("name", _CASES)
def test_a_part_depends_only_on_what_the_rule_says_it_reads(name: str) -> None:
    target, args, kwargs = _CASES[name]
    called = call(target, *args, **kwargs)
    assert called.result is not None, "this call has no rule"
    if not isinstance(called.result, Rule):
        for view in called.result:
            assert torch.equal(_seen(called, view), called.tensors[view.result])
        return
    random = Random(0)
    for _ in range(6):
        _check_one_part(called, args, kwargs, random)


def _check_one_part(
    called: Called, args: tuple[object, ...], kwargs: dict[str, object], random: Random
) -> None:
    rule, arguments = called.rule, called.node.tensor_arguments()
    named = {label for dims in rule.results for dim in dims for label in dim.labels}
    box: Box = {}
    for label in rule.labels:
        degree = random.randint(1, min(3, label.extent)) if label.splittable and label.name in named else 1
        box[label.name] = part_bounds(label.extent, degree, random.randrange(degree))
    replaced = []
    for index, dims in zip(arguments, rule.arguments, strict=True):
        tensor = called.tensors[index]
        read = _region(dims, tuple(tensor.shape), box, called.extents)
        replaced.append(torch.where(read, tensor, _other(tensor, read)))
    with torch.no_grad():
        tensors = iter(replaced)
        results = outcomes(operator(called.node.target)(*[_with(a, tensors) for a in args], **kwargs))
    for index, dims, result in zip(called.node.results, rule.results, results, strict=True):
        before = called.tensors[index]
        if before.dim() and not any(d.labels for d in dims):
            continue
        written = _region(dims, tuple(before.shape), box, called.extents)
        torch.testing.assert_close(result[written], before[written], equal_nan=True)


def _region(dims: tuple[Dim, ...], shape: tuple[int, ...], box: Box, extents: dict[str, int]) -> torch.Tensor:
    """Which elements of a tensor a box of labels touches, as a mask."""
    mask = torch.ones(shape, dtype=torch.bool)
    for d, (dim, extent) in enumerate(zip(dims, shape, strict=True)):
        touched = torch.zeros(extent, dtype=torch.bool)
        touched[_indices(dim, extent, box, extents)] = True
        mask &= touched.reshape([-1 if k == d else 1 for k in range(len(shape))])
    return mask


def _indices(dim: Dim, extent: int, box: Box, extents: dict[str, int]) -> list[int]:
    if not dim.labels:
        return list(range(extent))
    if dim.affine_identity:
        flat = [0]
        for label in dim.labels:
            flat = [i * extents[label] + j for i in flat for j in range(*box[label])]
        return flat
    assert dim.label is not None
    span = Span(
        factor=0,
        lower=0,
        upper=extent,
        mul=dim.mul,
        div=dim.div,
        add_first=dim.add_first,
        add_last=dim.add_last,
    )
    return list(range(*span.interval(*box[dim.label])))


def _other(tensor: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Different legal content: indices stay in range, and offsets of bags stay sorted."""
    if tensor.dtype is torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        after = read.flip(0).cumsum(0).flip(0) == 0 if tensor.dim() else read
        return torch.where(after, tensor.max(), torch.zeros_like(tensor))
    return 0.5 - 0.25 * tensor


def _with(argument: object, tensors: Iterator[torch.Tensor]) -> object:
    if isinstance(argument, torch.Tensor):
        return next(tensors)
    if isinstance(argument, list | tuple):
        return [_with(a, tensors) for a in argument]
    return argument


def _seen(called: Called, view: View) -> torch.Tensor:
    """The view, worked out from its description alone."""
    source, shape = called.tensors[view.source], called.tensors[view.result].shape
    if isinstance(view, Reshape):
        return source.reshape(shape)
    assert isinstance(view, Rearrange)
    for d, dim in enumerate(view.dims):
        source = source.narrow(d, dim.start, dim.length)
    kept = [d for d, dim in enumerate(view.dims) if dim.out is not None]
    for d in reversed(range(len(view.dims))):
        if d not in kept:
            source = source.select(d, 0)
    outs = [view.dims[d].out or 0 for d in kept]
    order = sorted(range(len(outs)), key=lambda k: outs[k])
    source = source.permute(order)
    for out in range(len(shape)):
        if out not in outs:
            source = source.unsqueeze(out)
    return source.expand(shape)


def test_adjacent_parts_of_a_window_read_everything_in_between() -> None:
    called = call("aten.conv1d.default", torch.randn(1, 1, 20), torch.randn(1, 1, 3), None, [1], [1], [2])
    (dim,) = called.rule.arguments[0][2:]
    extent = called.extents["length"]
    bounds = [part_bounds(extent, 4, k) for k in range(4)]
    reads = [_indices(dim, 20, {"length": b}, called.extents) for b in bounds]
    # Kernel 3 with dilation 2 spans 5 inputs, so neighbours share 4 of them.
    assert [len(set(a) & set(b)) for a, b in pairwise(reads)] == [4, 4, 4]
    assert prod(called.tensors[0].shape) == len(set().union(*reads))
