"""Matrix multiplications: linear layers, products of matrices of any rank, einsum.

    linear: x[.., i] w[o, i] b[o] -> y[.., o]

A product costs two FLOPs for each multiply-add. Its gradients are two products of the same size: one with the
other operand for each operand. The bias is added inside the product's kernel and costs nothing of its own;
tasks that split the contraction (`in_channel`) write partial sums, in which a bias counts once.
"""

from soaprl.graph.rules.base import WHOLE, Dim, Label, Node, Rule, RuleTable, Value, Work, plain
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    broadcast,
    build,
    dim_labels,
    each,
    plain_dims,
    results,
    tensor,
    tensor_list,
)


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.linear")(linear)
    table.register("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot", "aten.inner")(
        matmul
    )
    table.register("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addmm_", "aten.baddbmm_")(added_matmul)
    table.register("aten.outer", "aten.ger")(outer)
    table.register("aten.einsum")(einsum)
    table.register("aten.bilinear")(bilinear)
    table.register("aten.cdist")(distances)


def linear(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[.., i] w[o, i] b[o] -> y[.., o]``."""
    x, weight, bias = (tensor(node, values, p, n) for p, n in enumerate(("input", "weight", "bias")))
    if x is None or weight is None or len(weight.shape) != 2:
        return None
    leading = dim_labels(x.shape[:-1])
    out = Label(name="channel", extent=weight.shape[0])
    inner = Label(name="in_channel", extent=weight.shape[1])
    labels = (*leading, out, inner)
    product_flops = each(2, labels)
    operands = [
        Operand(
            value=x,
            dims=(*plain_dims(leading), plain("in_channel")),
            gradient=product_flops,
            saved=weight.requires_grad,
        ),
        Operand(
            value=weight,
            dims=(plain("channel"), plain("in_channel")),
            gradient=product_flops,
            saved=x.requires_grad,
        ),
    ]
    if bias is not None:
        operands.append(Operand(value=bias, dims=(plain("channel"),), gradient=each(1, (*leading, out))))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[(*plain_dims(leading), plain("channel"))],
        forward_flops=product_flops,
        matmul=True,
    )


def matmul(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``a[.., r, i] b[.., i, c] -> y[.., r, c]``; vectors lack ``r`` or ``c``, leading dims broadcast."""
    tensors = arguments(node, values)
    if len(tensors) != 2 or (node.target.startswith("aten.inner") and len(tensors[1].shape) != 1):
        return None
    return _product(node, values, tensors[0], tensors[1], added=None)


def added_matmul(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``beta * s + alpha * a b``; ``s`` broadcasts against the product."""
    tensors = arguments(node, values)
    if len(tensors) != 3:
        return None
    return _product(node, values, tensors[1], tensors[2], added=tensors[0])


def _product(
    node: Node, values: tuple[Value, ...], a: Value, b: Value, *, added: Value | None
) -> Rule | None:
    if not a.shape or not b.shape or len(node.results) != 1:
        return None
    shape = results(node, values)[0].shape
    has_row, has_column = len(a.shape) > 1, len(b.shape) > 1
    num_batch = len(shape) - has_row - has_column
    if num_batch < 0:
        return None
    rows = dim_labels(shape[: num_batch + has_row])
    batch, row = rows[:num_batch], rows[num_batch:]
    column = (Label(name="channel", extent=b.shape[-1]),) if has_column else ()
    inner = Label(name="in_channel", extent=a.shape[-1])
    labels = (*batch, *row, *column, inner)
    a_batch, b_batch = broadcast(a.shape[: -1 - has_row], batch), broadcast(b.shape[: -1 - has_column], batch)
    if a_batch is None or b_batch is None:
        return None
    flops = each(2, labels)
    a_dims = (*a_batch, *plain_dims(row), plain("in_channel"))
    b_dims = (*b_batch, plain("in_channel"), *plain_dims(column))
    operands = [
        Operand(value=a, dims=a_dims, gradient=flops, saved=b.requires_grad),
        Operand(value=b, dims=b_dims, gradient=flops, saved=a.requires_grad),
    ]
    kept = (*batch, *row, *column)
    if added is not None:
        dims = broadcast(added.shape, kept)
        if dims is None:
            return None
        operands.insert(0, Operand(value=added, dims=dims, gradient=each(1, kept)))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(kept)],
        forward_flops=flops,
        matmul=True,
    )


def outer(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``a[r] b[c] -> y[r, c]``."""
    a, b = arguments(node, values)
    labels = (*dim_labels(a.shape), *(Label(name="channel", extent=e) for e in b.shape))
    if len(labels) != 2:
        return None
    rows, columns = plain_dims(labels)
    operands = [
        Operand(value=a, dims=(rows,), gradient=each(2, labels), saved=b.requires_grad),
        Operand(value=b, dims=(columns,), gradient=each(2, labels), saved=a.requires_grad),
    ]
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(labels)],
        forward_flops=each(1, labels),
    )


def einsum(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Any equation over single letters, without ``...`` and without a letter twice in one operand."""
    equation, tensors = node.argument(0, "equation"), tensor_list(node.argument(1, "tensors"), values)
    if not isinstance(equation, str) or tensors is None or "." in equation or len(node.results) != 1:
        return None
    inputs, output = _equation(equation)
    if len(inputs) != len(tensors) or any(len(set(term)) != len(term) for term in (*inputs, output)):
        return None
    extents: dict[str, int] = {}
    for term, value in zip(inputs, tensors, strict=True):
        if len(term) != len(value.shape):
            return None
        for letter, extent in zip(term, value.shape, strict=True):
            extents[letter] = max(extents.get(letter, 1), extent)
    if not set(output) <= set(extents):
        return None
    summed = [letter for letter in extents if letter not in output]
    label_of = {letter: Label(name=f"dim{d}", extent=extents[letter]) for d, letter in enumerate(output)}
    for letter in summed:
        name = "in_channel" if len(summed) == 1 else f"in_channel_{letter}"
        label_of[letter] = Label(name=name, extent=extents[letter])
    labels = tuple(label_of[letter] for letter in (*output, *summed))
    flops = _contraction_flops(inputs, output, label_of)
    operands = [
        Operand(value=value, dims=_letter_dims(term, value, label_of), gradient=flops, saved=len(tensors) > 1)
        for term, value in zip(inputs, tensors, strict=True)
    ]
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(labels[: len(output)])],
        forward_flops=flops,
        matmul=len(tensors) > 1,
    )


def _equation(equation: str) -> tuple[list[str], str]:
    """The operands' letters and the result's; without an arrow those that occur once, sorted."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if arrow:
        return inputs, right
    joined = "".join(inputs)
    return inputs, "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))


def _letter_dims(term: str, value: Value, label_of: dict[str, Label]) -> tuple[Dim, ...]:
    return tuple(
        plain(label_of[letter].name) if extent == label_of[letter].extent else WHOLE
        for letter, extent in zip(term, value.shape, strict=True)
    )


def _contraction_flops(inputs: list[str], output: str, label_of: dict[str, Label]) -> tuple[Work, ...]:
    """Two FLOPs for each multiply-add, contracting operands from left to right as PyTorch does."""
    if len(inputs) == 1:
        return each(1, [label_of[letter] for letter in inputs[0]])
    terms: list[Work] = []
    held = inputs[0]
    for position, term in enumerate(inputs[1:], start=1):
        union = dict.fromkeys(held + term)
        terms += each(2, [label_of[letter] for letter in union])
        later = set(output).union(*inputs[position + 1 :])
        held = "".join(letter for letter in union if letter in later)
    return tuple(terms)


def bilinear(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[.., i] w[o, i, j] z[.., j] b[o] -> y[.., o]``."""
    x, z, weight = (tensor(node, values, p) for p in range(3))
    bias = tensor(node, values, 3, "bias")
    if x is None or z is None or weight is None or len(weight.shape) != 3:
        return None
    leading = dim_labels(x.shape[:-1])
    names_of = ("channel", "in_channel", "in_channel_2")
    inner = tuple(Label(name=n, extent=e) for n, e in zip(names_of, weight.shape, strict=True))
    labels = (*leading, *inner)
    flops = each(2, labels)
    operands = [
        Operand(value=x, dims=(*plain_dims(leading), plain("in_channel")), gradient=flops, saved=True),
        Operand(value=z, dims=(*plain_dims(leading), plain("in_channel_2")), gradient=flops, saved=True),
        Operand(value=weight, dims=plain_dims(inner), gradient=flops, saved=True),
    ]
    if bias is not None:
        operands.append(Operand(value=bias, dims=(plain("channel"),), gradient=each(1, (*leading, inner[0]))))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[(*plain_dims(leading), plain("channel"))],
        forward_flops=flops,
        matmul=True,
    )


def distances(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Distances of all pairs of rows: ``a[.., r, i] b[.., c, i] -> y[.., r, c]``, over whole vectors."""
    a, b = tensor(node, values, 0), tensor(node, values, 1)
    if a is None or b is None or min(len(a.shape), len(b.shape)) < 2:
        return None
    rows = dim_labels(results(node, values)[0].shape[:-1])
    column = Label(name="channel", extent=b.shape[-2])
    inner = Label(name="in_channel", extent=a.shape[-1], splittable=False)
    a_dims, b_dims = broadcast(a.shape[:-1], rows), broadcast(b.shape[:-2], rows[:-1])
    if a_dims is None or b_dims is None:
        return None
    labels = (*rows, column, inner)
    operands = [
        Operand(value=a, dims=(*a_dims, plain("in_channel")), gradient=each(3, labels), saved=True),
        Operand(
            value=b,
            dims=(*b_dims, plain("channel"), plain("in_channel")),
            gradient=each(3, labels),
            saved=True,
        ),
    ]
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims((*rows, column))],
        forward_flops=each(3, labels),
        saves_results=[True],
        matmul=True,
    )
