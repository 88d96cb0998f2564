"""A classifier with a small mixture of experts: soft gates, stacked experts, weighted sum by einsum."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SmallMoE(nn.Module):
    def __init__(self, width: int, num_experts: int, num_classes: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            for _ in range(num_experts)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gates = self.gate(x)
        worst = gates.topk(2, dim=-1).values[:, -1:]
        gates = torch.softmax(gates.masked_fill(gates < worst, float("-inf")), dim=-1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = torch.einsum("ne,new->nw", gates, experts)
        return functional.nll_loss(functional.log_softmax(self.head(x + mixed), dim=-1), labels)


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = SmallMoE(width=32, num_experts=4, num_classes=10)
    return model, (torch.randn(batch_size, 32), torch.randint(10, (batch_size,)))
