"""Random graphs: layers drawn at random over a pool of tensors, each reading what earlier ones computed."""

import random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from tests.runtime.cases import in_double
from tests.runtime.checking import Case


class RandomModel(nn.Module):
    """Draws its layers in its first forward pass, from `seed`; every later pass repeats them.

    All tensors are ``[samples, steps, width]``. Layers of equal shapes may share their weights.
    """

    def __init__(self, seed: int, num_layers: int) -> None:
        super().__init__()
        self.seed, self.num_layers = seed, num_layers
        self.words = nn.Embedding(7, 4)
        self.layers = nn.ModuleDict()
        with torch.no_grad():
            self(torch.randn(4, 3, 4), torch.zeros(4, 3, dtype=torch.int64))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        rng = random.Random(self.seed)
        pool = [x, self.words(ids)]
        for _ in range(self.num_layers):
            # Mostly the newest, so that graphs are deep; sometimes an older one, so that paths cross.
            source = pool[-1] if rng.random() < 0.7 else rng.choice(pool)
            pool.append(self._layer(rng, source, pool))
        return self._loss(rng, pool, ids)

    def _layer(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        kind = rng.choice(_KINDS)
        made: Tensor = getattr(self, f"_{kind}")(rng, x, pool)
        return made

    def _module(self, name: str, make: Any) -> nn.Module:
        if name not in self.layers:
            self.layers[name] = make()
        return self.layers[name]

    def _linear(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        width, shared = rng.choice([2, 3, 4, 6, 8]), rng.randrange(3)
        layer = self._module(
            f"linear_{x.shape[2]}_{width}_{shared}", lambda: nn.Linear(x.shape[2], width, bias=shared > 0)
        )
        return layer(x)

    def _tied(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        return F.linear(x[..., :4], self.words.weight) if x.shape[2] >= 4 else x @ x.mT @ x

    def _normalized(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        return self._module(f"norm_{x.shape[2]}", lambda: nn.LayerNorm(x.shape[2]))(x)

    def _batch_normalized(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        layer = self._module(f"batch_norm_{x.shape[2]}", lambda: nn.BatchNorm1d(x.shape[2]))
        return layer(x.transpose(1, 2)).transpose(1, 2)

    def _activated(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        return rng.choice([F.gelu, torch.sin, torch.sigmoid, F.silu])(x)

    def _dropped(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        return F.dropout(x, 0.3)

    def _attended(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        layer = self._module(f"attention_{x.shape[2]}", lambda: nn.Linear(x.shape[2], 12))
        q, k, v = layer(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=rng.random() < 0.5)
        return y.transpose(1, 2).flatten(2)

    def _scores(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x

    def _convolved(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        width, kernel, stride = rng.choice([2, 4]), rng.choice([1, 2, 3]), rng.choice([1, 1, 2])
        layer = self._module(
            f"conv_{x.shape[2]}_{width}_{kernel}_{stride}",
            lambda: nn.Conv1d(x.shape[2], width, kernel, stride, padding=kernel // 2),
        )
        return layer(x.transpose(1, 2)).transpose(1, 2)

    def _pooled(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        pooling = F.max_pool1d if rng.random() < 0.5 else F.avg_pool1d
        return pooling(x.transpose(1, 2), 2, 1, 1).transpose(1, 2)

    def _recurrent(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        name = f"lstm_{x.shape[2]}"
        return self._module(name, lambda: nn.LSTM(x.shape[2], 3, batch_first=True))(x)[0]

    def _joined(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        same = [p for p in pool if p.shape == x.shape]
        other, dim = rng.choice(same), rng.choice([1, 2])
        if rng.random() < 0.5 or x.shape[dim] + other.shape[dim] > 12:
            return x + other if rng.random() < 0.5 else x * other.sigmoid()
        return torch.cat([x, other], dim)

    def _cut(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        dim = rng.choice([1, 2])
        if x.shape[dim] < 3:
            return x.exp().reciprocal()
        first = rng.randint(0, 1)
        return x.narrow(dim, first, rng.randint(2, x.shape[dim] - first))

    def _reduced(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        dim, how = rng.choice([1, 2]), rng.choice(["mean", "amax", "amin", "logsumexp", "sum"])
        return x - getattr(x, how)(dim, keepdim=True) / 2

    def _constant(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        if rng.random() < 0.5:
            return x * torch.tensor([0.5, 1.5])[:1]
        return x + torch.arange(float(x.shape[1]))[:, None].cos()

    def _viewed(self, rng: random.Random, x: Tensor, pool: list[Tensor]) -> Tensor:
        if x.shape[2] % 2:
            return x.transpose(1, 2)
        return x.unflatten(2, (2, -1)).transpose(1, 2).flatten(2).reshape(x.shape[0], -1, x.shape[1])

    def _loss(self, rng: random.Random, pool: list[Tensor], ids: Tensor) -> Tensor:
        x = pool[-1]
        kind = rng.choice(["square", "sum", "classes", "several", "largest", "logsumexp"])
        if kind == "classes":
            target = ids[:, :1].expand(-1, x.shape[1]) % x.shape[2]
            return F.cross_entropy(x.transpose(1, 2), target)
        if kind == "several":
            return sum((p.sin().mean() for p in pool[1:]), x.square().sum() / 8)
        if kind == "largest":
            return (x * torch.linspace(1, 2, x.shape[2])).max()
        if kind == "logsumexp":
            return x.logsumexp((0, 1, 2))
        return x.square().mean() if kind == "square" else x.sin().sum()


_KINDS = (
    ["linear"] * 4
    + ["joined"] * 3
    + ["activated", "convolved", "reduced", "viewed", "cut"] * 2
    + ["tied", "normalized", "batch_normalized", "dropped", "attended", "scores"]
    + ["pooled", "recurrent", "constant"]
)


def random_model(seed: int, num_layers: int = 6) -> Case:
    """A random model with random inputs."""

    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(seed)
        with in_double():
            module = RandomModel(seed, num_layers)
            return module, (torch.randn(batch, 3, 4), torch.randint(0, 7, (batch, 3)))

    return Case(name=f"random_{seed}", factory=factory, matches_eager=False)
