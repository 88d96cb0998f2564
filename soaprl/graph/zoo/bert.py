"""BERT (Devlin et al. 2018): a bidirectional transformer encoder, trained to fill in masked words."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.graph.zoo.transformer import FeedForward, SelfAttention, initialize, token_cross_entropy

_EPSILON = 1e-12


class EncoderLayer(nn.Module):
    """Self-attention, then two linear layers; normalization after each sum."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, causal=False)
        self.attention_dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.feed_forward = FeedForward(width, 4 * width)
        self.feed_forward_dropout = nn.Dropout(dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        x = self.attention_norm(x + self.attention_dropout(self.attention(x)))
        normalized: Tensor = self.feed_forward_norm(x + self.feed_forward_dropout(self.feed_forward(x)))
        return normalized


class BERT(nn.Module):
    """The encoder with the masked-word head: a linear layer, then the transposed embedding with a bias.

    There is no pooler and no next-sentence head: without that task they get no gradient.
    """

    def __init__(
        self, *, num_layers: int, width: int, num_heads: int, vocabulary: int, sequence: int, dropout: float
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.segment = nn.Embedding(2, width)
        self.position = nn.Parameter(torch.empty(sequence, width).normal_(std=0.02))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(EncoderLayer(width, num_heads, dropout) for _ in range(num_layers)))
        self.transform = nn.Linear(width, width)
        self.transform_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.output = nn.Linear(width, vocabulary)
        self.apply(initialize)
        self.output.weight = self.word.weight

    def forward(self, words: Tensor, segments: Tensor, targets: Tensor) -> Tensor:
        """The loss; word ids, segment ids (0 or 1) and the words to find, each of shape (batch, sequence).

        Every position counts. With the usual targets (-100 where nothing is masked) the work is the same.
        """
        x = self.word(words) + self.segment(segments) + self.position  # (batch, sequence, width)
        x = self.layers(self.dropout(self.norm(x)))
        x = self.transform_norm(functional.gelu(self.transform(x)))
        return token_cross_entropy(self.output(x), targets)


def bert(
    batch_size: int,
    *,
    num_layers: int = 24,
    width: int = 1024,
    num_heads: int = 16,
    vocabulary: int = 30_522,
    sequence: int = 512,
    dropout: float = 0.1,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """BERT of any size; words, segments and targets of shape (batch, sequence).

    Attention probabilities have no dropout of their own, so that fused attention kernels apply.
    """
    model = BERT(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        vocabulary=vocabulary,
        sequence=sequence,
        dropout=dropout,
    )
    shape = (batch_size, sequence)
    words, segments = torch.randint(vocabulary, shape), torch.randint(2, shape)
    return model, (words, segments, torch.randint(vocabulary, shape))
