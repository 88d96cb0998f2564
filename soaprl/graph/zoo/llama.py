"""A Llama-style decoder (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, no biases."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.graph.zoo.transformer import head_width, initialize, token_cross_entropy

_EPSILON = 1e-6
_ROTARY_BASE = 10_000.0


def rotary_angles(sequence: int, width: int) -> Tensor:
    """Angle by position and pair of components: shape (sequence, width / 2) (Su et al. 2021, equation 15)."""
    frequencies = _ROTARY_BASE ** (-torch.arange(0, width, 2) / width)
    return torch.arange(sequence)[:, None] * frequencies[None, :]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns component i of each head together with component i + width / 2, by angles of rotary_angles.

    Args:
        x: Shape (batch, heads, sequence, head width).
        cosine: Shape (sequence, head width / 2).
        sine: The same shape.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_width = head_width(width, num_heads)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Shape (batch, sequence, width) to the same."""
        projections = (self.query(x), self.key(x), self.value(x))
        # each (batch, heads, sequence, head width)
        query, key, value = (p.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in projections)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return projected


class SwiGLU(nn.Module):
    """A feed-forward layer gated by SiLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.expand = nn.Linear(width, hidden, bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        contracted: Tensor = self.contract(functional.silu(self.gate(x)) * self.expand(x))
        return contracted


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on normalized input and added to what it was given."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=_EPSILON)
        self.attention = Attention(width, num_heads)
        self.feed_forward_norm = nn.RMSNorm(width, eps=_EPSILON)
        self.feed_forward = SwiGLU(width, hidden)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Shape (batch, sequence, width) to the same."""
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        change: Tensor = self.feed_forward(self.feed_forward_norm(x))
        return x + change


class Llama(nn.Module):
    """Predicts the next token after each token."""

    cosine: Tensor
    sine: Tensor

    def __init__(
        self, *, num_layers: int, width: int, num_heads: int, hidden: int, vocabulary: int, sequence: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer(width, num_heads, hidden) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, eps=_EPSILON)
        self.output = nn.Linear(width, vocabulary, bias=False)
        angles = rotary_angles(sequence, head_width(width, num_heads))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self.apply(initialize)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss for `tokens` and the tokens that follow them, both of shape (batch, sequence)."""
        x = self.embedding(tokens)  # (batch, sequence, width)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        return token_cross_entropy(self.output(self.norm(x)), targets)


def llama(
    batch_size: int,
    *,
    num_layers: int = 32,
    width: int = 4096,
    num_heads: int = 32,
    hidden: int = 11_008,
    vocabulary: int = 32_000,
    sequence: int = 2048,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A Llama-style decoder of any size, tokens and targets of shape (batch, sequence)."""
    model = Llama(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        hidden=hidden,
        vocabulary=vocabulary,
        sequence=sequence,
    )
    shape = (batch_size, sequence)
    return model, (torch.randint(vocabulary, shape), torch.randint(vocabulary, shape))
