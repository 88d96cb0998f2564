"""A decoder-only transformer whose feed-forward layers are mixtures of experts (Shazeer et al. 2017)."""

import torch
from torch import Tensor, nn

from soaprl.errors import CaptureError
from soaprl.graph.zoo.transformer import FeedForward, PreNormBlock, initialize, token_cross_entropy


class MixtureOfExperts(nn.Module):
    """The gated sum of a token's best experts, computed densely.

    Every expert sees every token, and tokens that it was not chosen for get weight 0. Work and shapes thus do
    not depend on the data, so that the model can be captured, and each expert is a set of operators of its
    own, which can be placed on its own device. A sparse implementation would do `num_chosen` / `num_experts`
    of the experts' work.
    """

    def __init__(self, width: int, hidden: int, *, num_experts: int, num_chosen: int) -> None:
        super().__init__()
        if not 1 <= num_chosen <= num_experts:
            raise CaptureError(
                f"expected the experts chosen for a token to be 1 to {num_experts}, found {num_chosen}"
            )
        self.num_chosen = num_chosen
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(width, hidden) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        probabilities = self.router(x).softmax(dim=-1)  # (batch, tokens, experts)
        best = probabilities.topk(self.num_chosen, dim=-1).values
        gates = probabilities * (probabilities >= best[..., -1:])
        gates = gates / gates.sum(dim=-1, keepdim=True)
        mixed: Tensor = self.experts[0](x) * gates[..., :1]
        for index, expert in enumerate(self.experts[1:], start=1):
            mixed = mixed + expert(x) * gates[..., index : index + 1]
        return mixed


class MixtureLanguageModel(nn.Module):
    """Predicts the next token after each token."""

    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        num_experts: int,
        num_chosen: int,
        vocabulary: int,
        sequence: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(sequence, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(
                PreNormBlock(
                    width,
                    num_heads,
                    MixtureOfExperts(width, 4 * width, num_experts=num_experts, num_chosen=num_chosen),
                    causal=True,
                    dropout=dropout,
                )
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.apply(initialize)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss for `tokens` and the tokens that follow them, both of shape (batch, sequence)."""
        x = self.dropout(self.embedding(tokens) + self.position)  # (batch, sequence, width)
        return token_cross_entropy(self.output(self.norm(self.layers(x))), targets)


def moe(
    batch_size: int,
    *,
    num_layers: int = 4,
    width: int = 512,
    num_heads: int = 8,
    num_experts: int = 8,
    num_chosen: int = 2,
    vocabulary: int = 32_000,
    sequence: int = 512,
    dropout: float = 0.1,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The mixture-of-experts model, tokens and targets of shape (batch, sequence)."""
    model = MixtureLanguageModel(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_experts=num_experts,
        num_chosen=num_chosen,
        vocabulary=vocabulary,
        sequence=sequence,
        dropout=dropout,
    )
    shape = (batch_size, sequence)
    return model, (torch.randint(vocabulary, shape), torch.randint(vocabulary, shape))
