"""Table look-ups. Rows split into vocabularies: each part answers for its own ids, others read zero."""

from soaprl.graph.rules.base import WHOLE, Label, Node, Rule, RuleTable, Value, plain, window
from soaprl.graph.rules.labels import (
    Operand,
    build,
    dim_labels,
    each,
    integer,
    plain_dims,
    results,
    tensor,
    work,
)

_MAX = 2


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.embedding")(embedding)
    table.register("aten.embedding_bag", "aten._embedding_bag")(embedding_bag)


def embedding(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``w[v, c] ids[..] -> y[.., c]``; reads as many rows as there are ids, not the table."""
    weight, ids = tensor(node, values, 0, "weight"), tensor(node, values, 1, "indices")
    if weight is None or ids is None or len(weight.shape) != 2:
        return None
    leading = dim_labels(ids.shape)
    channel = Label(name="channel", extent=weight.shape[1])
    vocabulary = Label(name="vocabulary", extent=weight.shape[0])
    looked_up = each(1, (*leading, channel))
    return build(
        node,
        values,
        labels=(*leading, channel, vocabulary),
        operands=[
            Operand(value=weight, dims=(plain("vocabulary"), plain("channel")), gradient=looked_up),
            Operand(value=ids, dims=plain_dims(leading), saved=True),
        ],
        result_dims=[(*plain_dims(leading), plain("channel"))],
        internal_bytes=(
            *each(weight.itemsize, (*leading, channel)),
            work(-weight.itemsize, "vocabulary", "channel"),
        ),
    )


def embedding_bag(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``w[v, c] ids[l] offsets[b] -> y[b, c]``: the sum (mean, maximum) over each bag of ids.

    Bags are of any length, so every part looks through all ids.
    """
    weight, ids, offsets = (tensor(node, values, p) for p in range(3))
    mode = integer(node, 4, "mode", 0)
    weights = tensor(node, values, 6, "per_sample_weights")
    outputs = results(node, values)
    if weight is None or ids is None or offsets is None or mode is None or len(ids.shape) != 1:
        return None
    bag = Label(name="sample", extent=outputs[0].shape[0])
    channel = Label(name="channel", extent=weight.shape[1])
    vocabulary = Label(name="vocabulary", extent=weight.shape[0], splittable=mode != _MAX)
    labels = (bag, channel, vocabulary)
    # A bag ends where the next one starts.
    ends = window("sample", kernel=2, stride=1, padding=0)
    ids_per_bag = ids.shape[0] / bag.extent if bag.extent else 0.0
    summed = each(ids_per_bag, (bag, channel))
    operands = [
        Operand(value=weight, dims=(plain("vocabulary"), plain("channel")), gradient=summed),
        Operand(value=ids, dims=(WHOLE,), saved=True),
        Operand(value=offsets, dims=(ends,), saved=True),
    ]
    if weights is not None:
        operands.append(Operand(value=weights, dims=(WHOLE,), gradient=summed, saved=True))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[
            (plain("sample"), plain("channel")),
            *((WHOLE,) * len(v.shape) for v in outputs[1:]),
        ],
        forward_flops=summed,
        saves_results=[False, *(True for _ in outputs[1:])],
        internal_bytes=(
            *each(weight.itemsize * ids_per_bag, (bag, channel)),
            work(-weight.itemsize, "vocabulary", "channel"),
        ),
    )
