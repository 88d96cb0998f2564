"""A language model whose output layer is its embedding, and whose two blocks are one module called twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TiedLanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.block(x)
        x = x + self.block(x)
        logits = self.output(x)
        return functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    shape = (batch_size, 12)
    return TiedLanguageModel(100, 32), (torch.randint(100, shape), torch.randint(100, shape))
