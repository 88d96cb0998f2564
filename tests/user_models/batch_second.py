"""A tagger over (time, batch, features): LSTM and attention in PyTorch's default layout, the batch second."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tagger(nn.Module):
    def __init__(self, vocabulary: int, width: int, num_tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width)
        self.attention = nn.MultiheadAttention(width, num_heads=4)
        self.norm = nn.LayerNorm(width)
        self.tags = nn.Linear(width, num_tags)

    def forward(self, words: Tensor, tags: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(words))  # (time, batch, width)
        attended, _ = self.attention(x, x, x, need_weights=False)
        logits = self.tags(self.norm(x + attended))
        return functional.cross_entropy(logits.flatten(0, 1), tags.flatten())


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    shape = (11, batch_size)
    return Tagger(200, 32, num_tags=7), (torch.randint(200, shape), torch.randint(7, shape))
