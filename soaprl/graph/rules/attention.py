"""Scaled dot-product attention as one fused operator.

    q[.., h, t, d] k[.., h, u, d] v[.., h, u, e] mask[.., t, u] -> y[.., h, t, e]

Scores are never written out: what is kept is the output and one number for each query. Keys stay whole, for
the softmax runs over them; so do the widths, for every part of one needs all scores.
"""

from dataclasses import dataclass

from soaprl.graph.rules.base import WHOLE, Dim, Label, Node, Rule, RuleTable, Value, plain, product
from soaprl.graph.rules.labels import Operand, build, each, plain_dims, results, tensor

_LOG_SUM_BYTES = 4
_SOFTMAX_FLOPS = 12.0


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.scaled_dot_product_attention")(attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leading:
    """The batch and head dimensions.

    Attributes:
        labels: Their labels; query heads that share a key head have two: `head` and `head_group`.
        extents: Extent of each dimension of the queries.
        dims: How each dimension of the queries follows from the labels.
        key_heads: Number of key heads.
    """

    labels: tuple[Label, ...]
    extents: tuple[int, ...]
    dims: tuple[Dim, ...]
    key_heads: int

    def of(self, shape: tuple[int, ...]) -> tuple[Dim, ...] | None:
        """Those dimensions of an operand that broadcasts, aligned at the last one."""
        if len(shape) > len(self.extents):
            return None
        skipped = len(self.extents) - len(shape)
        found: list[Dim] = []
        for position, extent in enumerate(shape, start=skipped):
            is_head = position == len(self.extents) - 1
            if extent == self.extents[position]:
                found.append(self.dims[position])
            elif is_head and extent == self.key_heads:
                found.append(plain("head"))
            elif extent == 1:
                found.append(WHOLE)
            else:
                return None
        return tuple(found)


def attention(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Attention, with a mask of any broadcast shape, and with key heads shared by groups of query heads.

    The backward pass computes the scores again. A causal mask does not lower the count of FLOPs.
    """
    q, k, v, mask = (tensor(node, values, p, n) for p, n in enumerate(("query", "key", "value", "attn_mask")))
    if q is None or k is None or v is None or not 2 <= len(q.shape) == len(k.shape) == len(v.shape):
        return None
    leading = _leading(results(node, values)[0].shape[:-2], k.shape[:-2])
    outer = None if leading is None else tuple(leading.of(t.shape[:-2]) for t in (q, k, v))
    if leading is None or outer is None or None in outer:
        return None
    query = Label(name="query", extent=q.shape[-2])
    value_width = Label(name="value_width", extent=v.shape[-1], splittable=False)
    key = Label(name="key", extent=k.shape[-2], splittable=False)
    width = Label(name="width", extent=q.shape[-1], splittable=False)
    shared = (*leading.labels, query)
    scores, mixed = each(2, (*shared, key, width)), each(2, (*shared, key, value_width))
    inner = ((query, width), (key, width), (key, value_width))
    gradients = ((*scores, *mixed, *scores), scores, mixed)
    operands = [
        Operand(value=t, dims=(*(dims or ()), *plain_dims(last)), gradient=gradient, saved=True)
        for t, dims, last, gradient in zip((q, k, v), outer, inner, gradients, strict=True)
    ]
    if mask is not None:
        mask_dims = _mask_dims(mask.shape, leading, (query, key))
        operands.append(Operand(value=mask, dims=mask_dims, gradient=each(1, (*shared, key)), saved=True))
    return build(
        node,
        values,
        labels=(*shared, value_width, key, width),
        operands=operands,
        result_dims=[(*leading.dims, *plain_dims((query, value_width)))],
        forward_flops=(*scores, *each(_SOFTMAX_FLOPS, (*shared, key)), *mixed),
        saves_results=[True],
        internal_saved_bytes=each(_LOG_SUM_BYTES, shared),
        kind="attention",
        matmul=True,
    )


def _leading(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> _Leading | None:
    """Names them sample and head, or by number where there are more."""
    names_of = {0: (), 1: ("sample",), 2: ("sample", "head")}.get(len(shape))
    if names_of is None:
        names_of = (*(f"dim{d}" for d in range(len(shape) - 1)), "head")
    labels = tuple(Label(name=n, extent=e) for n, e in zip(names_of, shape, strict=True))
    dims = plain_dims(labels)
    key_heads = key_shape[-1] if key_shape else 1
    if len(shape) < 2 or key_heads in (1, shape[-1]):
        return _Leading(labels=labels, extents=shape, dims=dims, key_heads=shape[-1] if shape else 1)
    if shape[-1] % key_heads:
        return None
    heads = (Label(name="head", extent=key_heads), Label(name="head_group", extent=shape[-1] // key_heads))
    dims = (*dims[:-1], product("head", "head_group"))
    return _Leading(labels=(*labels[:-1], *heads), extents=shape, dims=dims, key_heads=key_heads)


def _mask_dims(shape: tuple[int, ...], leading: _Leading, inner: tuple[Label, Label]) -> tuple[Dim, ...]:
    """Empty if the mask does not broadcast, which then fits no mask."""
    outer = leading.of(shape[:-2])
    last = tuple(
        plain(label.name) if extent == label.extent else WHOLE
        for extent, label in zip(shape[-2:], inner[-len(shape[-2:]) :], strict=True)
    )
    return () if outer is None else (*outer, *last)
