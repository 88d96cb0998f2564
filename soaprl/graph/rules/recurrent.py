"""Recurrent layers: whole sequences (fused kernels), and single cells.

A fused layer is split by sample alone. Its FLOPs are those of its matrix products, two for each weight, step
and sample, and a little for each gate; the library's own counters know nothing of fused recurrent kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

from soaprl.graph.rules.base import WHOLE, Dim, Label, Node, Rule, RuleTable, Value, Work, plain, product
from soaprl.graph.rules.labels import (
    Operand,
    build,
    each,
    flag,
    integer,
    results,
    tensor,
    tensor_list,
    work,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A kind of recurrent cell.

    Attributes:
        kind: Its name.
        num_gates: Rows of its weights in units of the hidden size.
        num_states: Tensors handed from step to step.
        gate_flops: FLOPs of the pointwise part for each hidden unit and step.
        num_saved: Numbers that the backward pass keeps for each hidden unit and step.
    """

    kind: str
    num_gates: int
    num_states: int
    gate_flops: float
    num_saved: int


_LSTM = _Cell(kind="lstm", num_gates=4, num_states=2, gate_flops=45.0, num_saved=6)
_GRU = _Cell(kind="gru", num_gates=3, num_states=1, gate_flops=33.0, num_saved=5)
_RNN = _Cell(kind="rnn", num_gates=1, num_states=1, gate_flops=10.0, num_saved=1)


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`; packed sequences (the ``data`` overloads) have none."""
    table.register("aten.lstm.input")(partial(layers, cell=_LSTM))
    table.register("aten.gru.input")(partial(layers, cell=_GRU))
    table.register("aten.rnn_tanh.input", "aten.rnn_relu.input")(partial(layers, cell=_RNN))
    table.register("aten.lstm_cell")(partial(one_step, cell=_LSTM))
    table.register("aten.gru_cell")(partial(one_step, cell=_GRU))
    table.register("aten.rnn_tanh_cell", "aten.rnn_relu_cell")(partial(one_step, cell=_RNN))


def layers(node: Node, values: tuple[Value, ...], *, cell: _Cell) -> Rule | None:
    """All layers and directions over a whole sequence, split by sample."""
    x = tensor(node, values, 0, "input")
    initial = node.argument(1, "hx")
    states = tensor_list(initial if isinstance(initial, tuple) else (initial,), values)
    weights = tensor_list(node.argument(2, "params"), values)
    num_layers, batch_first = integer(node, 4, "num_layers", 1), flag(node, 8, "batch_first")
    if x is None or states is None or not weights or not num_layers or len(x.shape) != 3:
        return None
    num_stacks = num_layers * (2 if flag(node, 7, "bidirectional") else 1)
    num_samples, num_steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    units = num_steps * num_stacks * weights[0].shape[0] // cell.num_gates
    sequence = (plain("sample"), WHOLE, WHOLE) if batch_first else (WHOLE, plain("sample"), WHOLE)
    state = (WHOLE, plain("sample"), WHOLE)
    matrices = sum(prod(w.shape) for w in weights if len(w.shape) == 2)
    num_first = num_stacks // num_layers * prod(weights[0].shape)
    outputs = results(node, values)
    return build(
        node,
        values,
        labels=(Label(name="sample", extent=num_samples),),
        operands=[
            Operand(
                value=x,
                dims=sequence,
                gradient=(work(2 * num_first * num_steps, "sample"),),
                saved=True,
            ),
            *(Operand(value=v, dims=state, gradient=(work(1, "sample"),), saved=True) for v in states),
            *_weights(weights, num_layers, num_stacks, num_steps, cell),
        ],
        result_dims=[sequence, *(state,) * (len(outputs) - 1)],
        forward_flops=(work(2 * matrices * num_steps + cell.gate_flops * units, "sample"),),
        saves_results=[True, *(False for _ in outputs[1:])],
        internal_bytes=_layer_traffic(cell, units, weights, num_stacks, num_steps),
        internal_saved_bytes=(work(cell.num_saved * units * x.itemsize, "sample"),),
        # One product for all inputs of a layer; then a product and a pointwise kernel for each step.
        num_kernels=num_stacks * (1 + 2 * num_steps),
        kind=cell.kind,
        matmul=True,
    )


def _weights(
    weights: tuple[Value, ...], num_layers: int, num_stacks: int, num_steps: int, cell: _Cell
) -> Iterator[Operand]:
    """The weights of each stack (layer and direction): input, recurrent, then biases and a projection.

    A matrix costs one product for its own gradient, and one to reach what it multiplies; for the first
    layer's input the latter is the input's own.
    """
    in_stack = len(weights) // num_stacks
    for position, weight in enumerate(weights):
        stack, member = divmod(position, in_stack)
        is_matrix = len(weight.shape) == 2
        multiplies_input = member == 0 and stack < num_stacks // num_layers
        products = 0 if not is_matrix else 2 if multiplies_input else 4
        flops = float(max(products, 1) * prod(weight.shape) * num_steps)
        if member == 1:
            flops += 2 * cell.gate_flops * weight.shape[0] / cell.num_gates * num_steps
        yield Operand(
            value=weight,
            dims=(WHOLE,) * len(weight.shape),
            gradient=(work(flops, "sample"),),
            saved=is_matrix,
        )


def _layer_traffic(
    cell: _Cell, units: int, weights: tuple[Value, ...], num_stacks: int, num_steps: int
) -> tuple[Work, ...]:
    """Both products of a step write the gates, the pointwise kernel reads them; states go in and out.

    The weights of the recurrence are read again in every step but the first.
    """
    itemsize = weights[0].itemsize
    numbers = (2 * 2 * cell.num_gates + 2 * cell.num_states) * units
    recurrent = sum(prod(w.shape) for w in weights[1 :: len(weights) // num_stacks])
    return (work(numbers * itemsize, "sample"), work((num_steps - 1) * recurrent * itemsize))


def one_step(node: Node, values: tuple[Value, ...], *, cell: _Cell) -> Rule | None:
    """``x[n, i] h[n, j] w[gate * k, i] u[gate * k, j] -> y[n, k]``.

    Gates pass through nonlinear functions, so neither contraction can be split; a GRU needs its own slice of
    the state beside all of it, so there the hidden units stay whole too.
    """
    x, initial = tensor(node, values, 0, "input"), node.argument(1, "hx")
    states = tensor_list(initial if isinstance(initial, tuple) else (initial,), values)
    weights = [tensor(node, values, p) for p in range(2, 6)]
    w_ih, w_hh = weights[:2]
    if x is None or states is None or w_ih is None or w_hh is None or len(x.shape) != 2:
        return None
    labels = (
        Label(name="sample", extent=x.shape[0]),
        Label(name="hidden", extent=w_ih.shape[0] // cell.num_gates, splittable=cell is not _GRU),
        Label(name="gate", extent=cell.num_gates, splittable=False),
        Label(name="in_channel", extent=x.shape[1], splittable=False),
        Label(name="in_hidden", extent=w_hh.shape[1], splittable=False),
    )
    sample, hidden, gate, in_channel, in_hidden = labels
    rows, outputs = product("gate", "hidden"), results(node, values)
    input_flops = each(2, (sample, gate, hidden, in_channel))
    state_flops = each(2, (sample, gate, hidden, in_hidden))
    gate_flops = each(cell.gate_flops, (sample, hidden))
    state_dims = [(plain("sample"), plain("in_hidden")), (plain("sample"), plain("hidden"))]
    weight_dims: list[tuple[Dim, ...]] = [
        (rows, plain("in_channel")),
        (rows, plain("in_hidden")),
        (rows,),
        (rows,),
    ]
    weight_flops = [input_flops, state_flops, *(each(1, (sample, gate, hidden)),) * 2]
    state_gradients = [state_flops, each(1, (sample, hidden))]
    operands = [
        Operand(value=x, dims=(plain("sample"), plain("in_channel")), gradient=input_flops, saved=True),
        *(
            Operand(value=v, dims=dims, gradient=(*gradient, *gate_flops), saved=True)
            for v, dims, gradient in zip(states, state_dims, state_gradients, strict=False)
        ),
        *(
            Operand(value=v, dims=dims, gradient=gradient, saved=len(dims) == 2)
            for v, dims, gradient in zip(weights, weight_dims, weight_flops, strict=True)
            if v is not None
        ),
    ]
    numbers = 2 * 2 * cell.num_gates * x.itemsize
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[(plain("sample"), plain("hidden"))] * len(outputs),
        forward_flops=(*input_flops, *state_flops, *gate_flops),
        saves_results=[cell is _RNN, *(False for _ in outputs[1:])],
        internal_bytes=each(numbers, (sample, hidden)),
        # The result itself is all that a plain cell needs.
        internal_saved_bytes=() if cell is _RNN else each(cell.num_saved * x.itemsize, (sample, hidden)),
        num_kernels=3,
        kind=f"{cell.kind}_cell",
        matmul=True,
    )
