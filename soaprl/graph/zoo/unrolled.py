"""Recurrent layers over a sequence that is cut into chunks of steps."""

from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

State: TypeAlias = tuple[Tensor, Tensor]


class UnrolledLSTM(nn.Module):
    """A stack of LSTM layers, called once for each chunk with the state carried over.

    All calls of a layer share its weights, so the captured graph has an operator for each layer and chunk,
    which may run on different devices (paper, section on NMT: steps grouped in chunks).
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)

    def forward(
        self, chunks: Sequence[Tensor], states: Sequence[State | None] | None = None
    ) -> tuple[list[Tensor], list[State | None]]:
        """The last layer's outputs for each chunk, and each layer's final state.

        Args:
            chunks: Tensors of shape (batch, steps, input_size).
            states: For each layer, its initial hidden and cell state; zero if None.
        """
        carried: list[State | None] = [None] * len(self.layers) if states is None else list(states)
        outputs = []
        for x in chunks:
            for index, layer in enumerate(self.layers):
                x, carried[index] = layer(x, carried[index])
            outputs.append(x)
        return outputs, carried


def mean_cross_entropy(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Cross-entropy averaged over all tokens of all chunks, also where chunks differ in length.

    Args:
        logits: For each chunk, shape (batch, steps, vocabulary).
        targets: For each chunk, token ids of shape (batch, steps).
    """
    sums = [
        functional.cross_entropy(logit.flatten(0, 1), target.flatten(), reduction="sum")
        for logit, target in zip(logits, targets, strict=True)
    ]
    return reduce(torch.add, sums) / sum(target.numel() for target in targets)
