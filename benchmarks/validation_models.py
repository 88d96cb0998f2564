"""The models of `validation.py`: one of each kind, that take a CPU core about a tenth of a second."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.graph import zoo

WIDTHS = (256, 1024, 1024, 1024)
CLASSES = 1000


class Dense(nn.Module):
    """Linear layers whose parameters are large beside their activations, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(WIDTHS))
        self.classes = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch `x`, shape [samples, 256]."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return functional.cross_entropy(self.classes(x), labels)


def dense(batch_size: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and a random batch."""
    return Dense(), (torch.randn(batch_size, WIDTHS[0]), torch.randint(CLASSES, (batch_size,)))


def convolutional(batch_size: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """AlexNet of a quarter of its width."""
    options = {"num_classes": 100, "width": 16, "linear_width": 1024, "dropout": 0.0}
    return _of_zoo("alexnet", batch_size, **options)


def recurrent(batch_size: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """A language model of two LSTM layers, unrolled in pieces of two steps."""
    return _of_zoo("rnnlm", batch_size, vocabulary=2000, hidden=256, steps=8, chunk=2)


def transformer(batch_size: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """GPT-2 of two narrow layers."""
    options = {"num_layers": 2, "width": 192, "num_heads": 4, "vocabulary": 2000, "sequence": 64}
    return _of_zoo("gpt2", batch_size, dropout=0.0, **options)


def _of_zoo(name: str, batch_size: int, **options: float) -> tuple[nn.Module, tuple[Any, ...]]:
    module, args, *_ = zoo.build(name, batch_size, **options)
    return module, tuple(args)
