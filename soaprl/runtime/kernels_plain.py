"""Kernels of means, factories, copies and others whose literals speak of whole shapes."""

from math import prod

import torch
from torch import Tensor

from soaprl.runtime.calls import Kernel, LocalCall, Results
from soaprl.runtime.shards import LocalDim


def mean(call: LocalCall) -> Results:
    """A partial sum over the whole extent: never a mean of means."""
    dims = call.dims["self"]
    chosen = call.get("dim")
    chosen = range(len(dims)) if not chosen and chosen != 0 else chosen
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    count: int = prod(dims[d].extent for d in chosen)
    total: Tensor = call.local("self").sum(chosen, keepdim=bool(call.get("keepdim")), dtype=call["dtype"])
    return total / count


def factory(call: LocalCall) -> Results:
    """Tensors made of literals: the whole one, cropped to what the part computes."""
    return cropped(call.tensor(), call.results[0])


def cropped(tensor: Tensor, dims: tuple[LocalDim, ...]) -> Tensor:
    """The local indices of a whole tensor."""
    for d, dim in enumerate(dims):
        if dim.size == dim.stop - dim.start:
            tensor = tensor.narrow(d, dim.start, dim.size)
        else:
            tensor = tensor.index_select(d, dim.indices().to(tensor.device))
    return tensor


def local_size(name: str) -> Kernel:
    """A kernel for calls whose argument `name` is the result's shape."""

    def kernel(call: LocalCall) -> Results:
        return call.run(**{name: call.result_shape})

    return kernel


def triangle(call: LocalCall) -> Results:
    """triu, tril: the diagonal as seen from the local corner."""
    rows, columns = call.dims["self"][-2:]
    offset = (columns.indices()[None, :] - rows.indices()[:, None]).to(call["self"].device)
    kept = offset >= call["diagonal"] if call.target.startswith("aten.triu") else offset <= call["diagonal"]
    return torch.where(kept, call.local("self"), torch.zeros_like(call["self"]))


def strided_slice(call: LocalCall) -> Results:
    """aten.slice with a step: the region starts at the first index taken."""
    dims = call.dims["self"]
    if dims[call["dim"]].unlabelled:
        return call.run()
    return call.run(start=0, end=dims[call["dim"]].size)


def copy(call: LocalCall) -> Results:
    """``soaprl.copy(x)``: a view kept as a call."""
    return call.local("0").clone()


def reshape(call: LocalCall) -> Results:
    """``soaprl.reshape(x)``: to the shape of the result."""
    return call.local("0").reshape(call.result_shape)


def rearrange(call: LocalCall) -> Results:
    """``soaprl.rearrange(x, dims)``, with (out, start, length) for each dimension of x; out -1 is dropped.

    A dimension that is split already holds the indices it contributes; a whole one is narrowed here.
    """
    x, order = call.local("0"), []
    for d, (out, start, length) in enumerate(call["1"]):
        if call.dims["0"][d].span is None:
            x = x.narrow(d, start, length)
        if out >= 0:
            order.append((out, d))
    dropped = [d for d, (out, _, _) in enumerate(call["1"]) if out < 0]
    kept = [d for _, d in sorted(order)]
    x = x.permute([*kept, *dropped]).reshape([x.shape[d] for d in kept])
    present = {out for out, _ in order}
    for d in range(len(call.results[0])):
        if d not in present:
            x = x.unsqueeze(d)
    return x.expand(call.result_shape)


# On a part that has all of everything it only calls the library.
PLAIN_WHERE_WHOLE = (mean,)


def plain_kernels() -> dict[str, Kernel]:
    """Kernels by target without overload."""
    table: dict[str, Kernel] = {
        "aten.mean": mean,
        "aten.triu": triangle,
        "aten.tril": triangle,
        "aten.slice": strided_slice,
        "soaprl.copy": copy,
        "soaprl.reshape": reshape,
        "soaprl.rearrange": rearrange,
    }
    for name in ("zeros", "ones", "full", "arange", "empty", "linspace", "eye", "scalar_tensor"):
        table[f"aten.{name}"] = factory
    for name in ("new_zeros", "new_ones", "new_full", "new_empty", "expand", "view", "reshape"):
        table[f"aten.{name}"] = local_size("shape" if name == "reshape" else "size")
    return table
