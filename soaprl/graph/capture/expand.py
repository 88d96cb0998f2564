"""Calls replaced by several that split better.

Cross-entropy becomes log-sum-exp and the picked logits, so that the classes can be split. A bag
of embeddings of equal length, exported with flat ids and offsets, becomes a lookup and a sum over its ids, so
that it has samples to split.
"""

from dataclasses import replace

from soaprl.graph.operators import TensorRole
from soaprl.graph.rules.base import Node, Value, ValueRef


def expand(nodes: list[Node], values: list[Value]) -> list[Node]:
    """The nodes with such calls replaced; `values` gets what lies between the new ones."""
    makers = {value: node for node in nodes for value in node.results}
    expanded: list[Node] = []
    for node in nodes:
        ids = _bag_ids(node, makers, values)
        if _has_class_indices(node, values):
            expanded.extend(_loss_calls(node, values))
        elif ids is not None:
            expanded.extend(_bag_calls(node, ids, values))
        else:
            expanded.append(node)
    return expanded


def _has_class_indices(node: Node, values: list[Value]) -> bool:
    if not node.target.startswith("aten.cross_entropy_loss"):
        return False
    logits, target = node.argument(0, "self"), node.argument(1, "target")
    return (
        isinstance(logits, ValueRef)
        and isinstance(target, ValueRef)
        and "int" in values[target.index].dtype
        and len(values[target.index].shape) == len(values[logits.index].shape) - 1
    )


def _loss_calls(node: Node, values: list[Value]) -> tuple[Node, Node]:
    """A cross-entropy with class indices as two calls.

    They are `soaprl.log_sum_exp` and `soaprl.nll_from_log_sum_exp`: the loss of a sample is
    ``log(sum(exp(logits))) - logits[target]``, whose first part combines over parts of the classes by
    log-add-exp, and whose second one is a sum over them.
    """
    logits, target = node.argument(0, "self"), node.argument(1, "target")
    assert isinstance(logits, ValueRef), "checked by _has_class_indices"
    value = values[logits.index]
    class_dim = 1 if len(value.shape) > 1 else 0
    rows = value.shape[:class_dim] + value.shape[class_dim + 1 :]
    values.append(
        Value(
            name=f"{node.name}_log_sum_exp",
            role=TensorRole.ACTIVATION,
            shape=rows,
            dtype=value.dtype,
            itemsize=value.itemsize,
            requires_grad=value.requires_grad,
        )
    )
    total = ValueRef(len(values) - 1)
    first = replace(
        node, target="soaprl.log_sum_exp", args=(logits, class_dim), kwargs=(), results=(total.index,)
    )
    arguments = (
        logits,
        total,
        target,
        node.argument(2, "weight"),
        class_dim,
        node.argument(3, "reduction", 1),
        node.argument(4, "ignore_index", -100),
        node.argument(5, "label_smoothing", 0.0),
    )
    return first, replace(node, target="soaprl.nll_from_log_sum_exp", args=arguments, kwargs=())


_SUM, _MEAN = 0, 1


def _bag_ids(node: Node, makers: dict[int, Node], values: list[Value]) -> ValueRef | None:
    """The ids, of shape (bags, length), of a bag of embeddings of equal length; None if it is not one."""
    if not node.target.startswith("aten.embedding_bag"):
        return None
    flat, offsets = node.argument(1, "indices"), node.argument(2, "offsets")
    mode, weighted, padding = (node.argument(p, n) for p, n in ((4, "mode"), (6, "weights"), (8, "padding")))
    if not isinstance(flat, ValueRef) or not isinstance(offsets, ValueRef):
        return None
    if mode not in (None, _SUM, _MEAN) or weighted is not None or padding is not None:
        return None
    reshape, count = makers.get(flat.index), makers.get(offsets.index)
    if reshape is None or count is None or not reshape.target.startswith(("aten.reshape", "aten.view")):
        return None
    ids = reshape.args[0]
    if not isinstance(ids, ValueRef) or len(values[ids.index].shape) != 2:
        return None
    bags, length = values[ids.index].shape
    regular = count.target == "aten.arange.start_step" and count.args == (0, bags * length, length)
    return ids if regular else None


def _bag_calls(node: Node, ids: ValueRef, values: list[Value]) -> tuple[Node, Node]:
    weight = node.argument(0, "weight")
    assert isinstance(weight, ValueRef), "an embedding has a table"
    summed = values[node.results[0]]
    bags, length = values[ids.index].shape
    values.append(replace(summed, name=f"{summed.name}_rows", shape=(bags, length, summed.shape[1])))
    rows = ValueRef(len(values) - 1)
    sparse_gradient = (-1, node.argument(3, "scale_grad_by_freq", False), node.argument(5, "sparse", False))
    lookup = replace(
        node,
        target="aten.embedding.default",
        args=(weight, ids, *sparse_gradient),
        kwargs=(),
        results=(rows.index,),
    )
    reduce = "aten.mean.dim" if node.argument(4, "mode", _SUM) == _MEAN else "aten.sum.dim_IntList"
    return lookup, replace(node, target=reduce, args=(rows, (1,)), kwargs=(), results=node.results[:1])
