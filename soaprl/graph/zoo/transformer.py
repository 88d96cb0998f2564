"""The parts that the transformer models share."""

from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError


def head_width(width: int, num_heads: int) -> int:
    """Width of an attention head; raises `CaptureError` if heads do not divide the width."""
    if width % num_heads:
        raise CaptureError(
            f"expected a width that is a multiple of the number of attention heads, "
            f"found width {width} and {num_heads} heads: change one of them"
        )
    return width // num_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.head_width = head_width(width, num_heads)
        self.causal = causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        projections = self.query_key_value(x).chunk(3, dim=-1)
        # each (batch, heads, tokens, head width)
        query, key, value = (p.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in projections)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        projected: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # (batch, tokens, width)
        return projected


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int, *, approximate: str = "none") -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.GELU(approximate=approximate)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        contracted: Tensor = self.contract(self.activation(self.expand(x)))
        return contracted


class PreNormBlock(nn.Module):
    """Self-attention, then `feed_forward`; each on normalized input and added to what it was given."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feed_forward: nn.Module,
        *,
        causal: bool,
        dropout: float,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, num_heads, causal=causal)
        self.attention_dropout = nn.Dropout(dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)
        self.feed_forward = feed_forward
        self.feed_forward_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x)))
        change: Tensor = self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x + change


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy averaged over tokens: logits (batch, tokens, vocabulary), targets (batch, tokens)."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def initialize(module: nn.Module) -> None:
    """Draws the weights of a linear or embedding layer from N(0, 0.02), as BERT and GPT-2 do; zero biases.

    The defaults of `torch.nn` would start tied output layers with losses in the hundreds.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
