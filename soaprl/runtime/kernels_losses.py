"""Kernels of losses. A mean is a partial sum over what the whole tensor weighs, never a mean of means."""

from math import prod

import torch
from torch import Tensor

from soaprl.runtime.calls import Kernel, LocalCall, LocalDims, Results, tensor_dims
from soaprl.runtime.kernels_dense import check_rows, local_rows

NONE, MEAN, SUM = 0, 1, 2


def elementwise(call: LocalCall) -> Results:
    """Losses of elements: a mean is the sum over the number of elements of the whole."""
    if call["reduction"] != MEAN:
        return call.run()
    operands = list(tensor_dims(call.dims.values()))
    rank = max(len(dims) for dims in operands)
    count = prod(max(dims[d].extent for dims in operands if len(dims) >= -d) for d in range(-rank, 0))
    return call.tensor(reduction=SUM) / count


def whole_classes(call: LocalCall) -> Results:
    """cross_entropy_loss and nll_loss over classes that no part splits."""
    if call["reduction"] != MEAN:
        return call.run()
    logits = call.dims["self"]
    class_dim = min(1, len(logits) - 1)
    rows = _without(logits, class_dim)
    if call["target"].is_floating_point():
        return call.tensor(reduction=SUM) / prod(d.extent for d in rows)
    weights = target_weights(call["target"], call["weight"], call["ignore_index"], call["self"])
    return call.tensor(reduction=SUM, target=_own_rows(call["target"], rows)) / weights.sum()


def log_sum_exp(call: LocalCall) -> Results:
    """``soaprl.log_sum_exp(x, dim)``: over the local indices; parts combine by ``logaddexp``."""
    return torch.logsumexp(_exact(call.local("0")), call["1"])


def nll_from_log_sum_exp(call: LocalCall) -> Results:
    """``soaprl.nll_from_log_sum_exp``: a part counts the targets that are among its classes.

    Arguments: logits, their log-sum-exp over all classes, target classes, class weights or None, dimension of
    the classes, reduction, ignored class, label smoothing.
    """
    logits, normalizer, target = (call.local(name) for name in "012")
    weight, class_dim, reduction, ignored, smoothing = (call[name] for name in "34567")
    logits = _exact(logits).movedim(class_dim, -1)
    dims = call.dims["0"]
    whole, classes, rows = target, dims[class_dim], _without(dims, class_dim)
    local_weight = weight
    if reduction == MEAN:
        target = _own_rows(target, rows)
        local_weight = None if weight is None else weight[classes.indices().to(weight.device)]
    check_rows(target, classes.extent, ignored=ignored)
    ours, here = local_rows(target, classes)
    counts = here & (target != ignored)
    picked = normalizer - logits.gather(-1, ours.unsqueeze(-1)).squeeze(-1)
    if local_weight is not None:
        picked = picked * local_weight[ours]
    total: Tensor = (1 - smoothing) * torch.where(counts, picked, 0.0)
    if smoothing:
        spread = normalizer.unsqueeze(-1) - logits
        spread = spread if local_weight is None else spread * local_weight
        total = total + smoothing / classes.extent * torch.where(target != ignored, spread.sum(-1), 0.0)
    if reduction == NONE:
        return total
    if reduction == SUM:
        return total.sum()
    return total.sum() / target_weights(whole, weight, ignored, logits).sum()


def _exact(tensor: Tensor) -> Tensor:
    """What autocast computed in a short type, in float32, as it does for the library's own losses."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def target_weights(target: Tensor, weight: Tensor | None, ignored: int, like: Tensor) -> Tensor:
    """What each target counts in a mean: its class's weight (or 1), 0 where it is ignored."""
    counts = target != ignored
    if weight is None:
        return counts.to(like.dtype)
    return torch.where(counts, weight[target.clamp(0, len(weight) - 1)], 0.0)


def _without(dims: LocalDims, dropped: int) -> LocalDims:
    return tuple(d for k, d in enumerate(dims) if k != dropped % len(dims))


def _own_rows(whole: Tensor, rows: LocalDims) -> Tensor:
    """The part's rows of whole targets."""
    for d, dim in enumerate(rows):
        whole = whole.index_select(d, dim.indices().to(whole.device))
    return whole


# On a part that has all of everything these only call the library.
PLAIN_WHERE_WHOLE = (elementwise, whole_classes)


def loss_kernels() -> dict[str, Kernel]:
    """Kernels by target without overload."""
    table: dict[str, Kernel] = dict.fromkeys((f"aten.{name}" for name in _ELEMENTWISE), elementwise)
    table.update(
        dict.fromkeys(
            ("aten.cross_entropy_loss", "aten.nll_loss_nd", "aten.nll_loss", "aten.nll_loss2d"), whole_classes
        )
    )
    table["soaprl.log_sum_exp"] = log_sum_exp
    table["soaprl.nll_from_log_sum_exp"] = nll_from_log_sum_exp
    return table


_ELEMENTWISE = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "kl_div",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "soft_margin_loss",
    "hinge_embedding_loss",
    "poisson_nll_loss",
)
