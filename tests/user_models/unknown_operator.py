"""A network with operators that hardly anything has rules for: a matrix inverse and a running maximum."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Whitening(nn.Module):
    """Decorrelates features with the inverse of their regularized second moments."""

    def forward(self, x: Tensor) -> Tensor:
        moments = x.T @ x / x.shape[0] + torch.eye(x.shape[1])
        return x @ torch.linalg.inv(moments)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(24, 16)
        self.whitening = Whitening()
        self.after = nn.Linear(16, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = functional.relu(self.before(x))
        x = torch.cummax(self.whitening(x), dim=1).values
        return functional.cross_entropy(self.after(x), labels)


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Model(), (torch.randn(batch_size, 24), torch.randint(10, (batch_size,)))
