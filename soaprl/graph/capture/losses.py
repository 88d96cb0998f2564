"""Cross-entropy as two calls, so that the classes can be split: log-sum-exp, then the picked logits."""

from dataclasses import replace

from soaprl.graph.operators import TensorRole
from soaprl.graph.rules.base import Node, Value, ValueRef


def expand_cross_entropy(nodes: list[Node], values: list[Value]) -> list[Node]:
    """Replaces each cross-entropy with class indices by two calls.

    They are `soaprl.log_sum_exp` and `soaprl.nll_from_log_sum_exp`: the loss of a sample is
    ``log(sum(exp(logits))) - logits[target]``, whose first part combines over parts of the classes by
    log-add-exp, and whose second one is a sum over them. `values` gets the intermediate result.
    """
    expanded: list[Node] = []
    for node in nodes:
        expanded.extend(_two_calls(node, values) if _has_class_indices(node, values) else (node,))
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


def _two_calls(node: Node, values: list[Value]) -> tuple[Node, Node]:
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
