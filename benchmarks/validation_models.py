"""A wide dense model, whose parameters are large beside its activations, for `validation.py`."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (256, 1024, 1024, 1024)
CLASSES = 1000


class Wide(nn.Module):
    """Four linear layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(WIDTHS))
        self.classes = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch `x`, shape [samples, 256]."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return functional.cross_entropy(self.classes(x), labels)


def wide(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model and a random batch."""
    return Wide(), (torch.randn(batch_size, WIDTHS[0]), torch.randint(CLASSES, (batch_size,)))
