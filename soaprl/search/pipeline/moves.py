"""What the devices inside of a stage send each other, operator by operator."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soaprl.graph.factors import num_parts, part_box
from soaprl.graph.operators import Access, OperatorGraph
from soaprl.strategy.strategy import OpConfig

FloatArray = NDArray[np.float64]

_Box = tuple[tuple[int, int], ...]
# An edge by the kinds of its ends, the output and the input, with the configurations of both.
_Key = tuple[int, int, int, int, OpConfig, OpConfig]


class Moves:
    """Bytes that the first task of each operator receives from every other device.

    Equal edges between equal operators with equal configurations are looked at once.

    Args:
        graph: Of one micro-batch.
        kinds: A number for each operator; equal operators have the same.
    """

    def __init__(self, graph: OperatorGraph, kinds: Sequence[int]) -> None:
        self._graph = graph
        self._kinds = kinds
        self._known: dict[_Key, FloatArray] = {}

    def received_bytes(self, configs: Sequence[OpConfig], num_devices: int) -> FloatArray:
        """Activations received by each operator's first task from each device, shape [operators, devices]."""
        graph, received = self._graph, np.zeros((len(configs), num_devices))
        for reader, operator in enumerate(graph.operators):
            for position, access in enumerate(operator.inputs):
                writer = graph.producer.get(access.tensor)
                if writer is None:
                    continue
                outputs = graph.operators[writer].outputs
                output = next(k for k, a in enumerate(outputs) if a.tensor == access.tensor)
                kinds = self._kinds[writer], output, self._kinds[reader], position
                key = (*kinds, configs[writer], configs[reader])
                if key not in self._known:
                    self._known[key] = self._edge((writer, outputs[output]), (reader, access), configs)
                sent = self._known[key]
                received[reader, : len(sent)] += sent
        return received

    def _edge(
        self, written: tuple[int, Access], read: tuple[int, Access], configs: Sequence[OpConfig]
    ) -> FloatArray:
        graph, writer, reader = self._graph, configs[written[0]], configs[read[0]]
        received = np.zeros(1 + max(writer.devices))
        wanted = _region(read[1], part_box(graph.operators[read[0]].extents, reader.degrees, 0))
        itemsize, extents = graph.tensors[read[1].tensor].itemsize, graph.operators[written[0]].extents
        for part in range(num_parts(writer.degrees)):
            device = writer.devices[part]
            if device != reader.devices[0]:
                box = part_box(extents, writer.degrees, part)
                received[device] += itemsize * _common(wanted, _region(written[1], box))
        return received


def _region(access: Access, box: _Box) -> _Box:
    return tuple(s.interval(*(box[s.factor] if s.factor >= 0 else (0, 1))) for s in access.spans)


def _common(one: _Box, other: _Box) -> int:
    """Elements in both."""
    elements = 1
    for (a, b), (c, d) in zip(one, other, strict=True):
        elements *= max(0, min(b, d) - max(a, c))
    return elements
