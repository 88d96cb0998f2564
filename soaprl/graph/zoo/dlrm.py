"""DLRM (Naumov et al. 2019): click prediction from numbers and categories."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Distinct values of the 26 categorical features of the Criteo Kaggle display advertising data set.
CRITEO_ROWS = (
    *(1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194),
    *(27, 14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572),
)
_NUM_DENSE = 13


def _perceptron(*sizes: int) -> nn.Sequential:
    layers = nn.Sequential()
    for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers.add_module(f"linear{index}", nn.Linear(inputs, outputs))
        layers.add_module(f"relu{index}", nn.ReLU())
    return layers


class DLRM(nn.Module):
    """Embeds categories, maps numbers to the same width, and scores the dot products of all pairs.

    Each categorical feature of Criteo has one value, so that tables are plain embeddings. (`nn.EmbeddingBag`
    is exported with one flat list of values and offsets into it, which hides whose value is whose.)
    """

    pairs: Tensor

    def __init__(self, *, rows: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(num, width) for num in rows)
        self.bottom = _perceptron(_NUM_DENSE, 512, 256, 64, width)
        num_vectors = len(rows) + 1
        row, column = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.register_buffer("pairs", row * num_vectors + column, persistent=False)
        self.top = _perceptron(width + num_vectors * (num_vectors - 1) // 2, 512, 256)
        self.click = nn.Linear(256, 1)

    def forward(self, dense: Tensor, categories: Tensor, clicks: Tensor) -> Tensor:
        """The loss.

        Args:
            dense: Numbers, shape (batch, 13).
            categories: Indices into the tables, shape (batch, tables).
            clicks: 0. or 1., shape (batch,).
        """
        bottom = self.bottom(dense)
        embedded = [table(categories[:, index]) for index, table in enumerate(self.tables)]
        vectors = torch.stack([bottom, *embedded], dim=1)  # (batch, vectors, width)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)  # (batch, vectors * vectors)
        features = torch.cat((bottom, products.index_select(1, self.pairs)), dim=1)
        return functional.binary_cross_entropy_with_logits(self.click(self.top(features)).squeeze(1), clicks)


def dlrm(
    batch_size: int, *, width: int = 16, max_rows: int = max(CRITEO_ROWS)
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """DLRM as its authors size it for Criteo Kaggle; numbers (batch, 13), categories, clicks (batch,).

    `max_rows` caps the size of a table (values above share rows).
    """
    rows = tuple(min(num, max_rows) for num in CRITEO_ROWS)
    categories = torch.stack([torch.randint(num, (batch_size,)) for num in rows], dim=1)
    clicks = torch.randint(2, (batch_size,)).float()
    return DLRM(rows=rows, width=width), (torch.randn(batch_size, _NUM_DENSE), categories, clicks)
