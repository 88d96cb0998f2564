"""GPT-2 (Radford et al. 2019): a decoder-only transformer with normalization before each block."""

import torch
from torch import Tensor, nn

from soaprl.graph.zoo.transformer import FeedForward, PreNormBlock, initialize, token_cross_entropy


class GPT2(nn.Module):
    """Predicts the next token after each token; the output layer is tied to the embedding."""

    def __init__(
        self, *, num_layers: int, width: int, num_heads: int, vocabulary: int, sequence: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(sequence, width).normal_(std=0.01))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(
                PreNormBlock(
                    width,
                    num_heads,
                    FeedForward(width, 4 * width, approximate="tanh"),
                    causal=True,
                    dropout=dropout,
                )
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.apply(initialize)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss for `tokens` and the tokens that follow them, both of shape (batch, sequence)."""
        x = self.dropout(self.embedding(tokens) + self.position)  # (batch, sequence, width)
        return token_cross_entropy(self.output(self.norm(self.layers(x))), targets)


def gpt2(
    batch_size: int,
    *,
    num_layers: int = 12,
    width: int = 768,
    num_heads: int = 12,
    vocabulary: int = 50_257,
    sequence: int = 1024,
    dropout: float = 0.1,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """GPT-2 of any size, tokens and targets of shape (batch, sequence).

    Attention probabilities have no dropout of their own, so that fused attention kernels apply.
    """
    model = GPT2(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        vocabulary=vocabulary,
        sequence=sequence,
        dropout=dropout,
    )
    shape = (batch_size, sequence)
    return model, (torch.randint(vocabulary, shape), torch.randint(vocabulary, shape))
