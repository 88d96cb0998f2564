"""Small whole models for the execution tests: what single operators cannot show."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from soaprl.graph import zoo
from tests.runtime.cases import in_double, keep_statistics_whole, labels_below, normal, of_module
from tests.runtime.checking import Case


class ConvBlock(nn.Module):
    """Convolutions, normalization, a residual, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)), inplace=True)
        x = F.relu(self.norms[1](self.second(x)) + x)
        x = F.max_pool2d(x, 3, 2, 1)
        return F.cross_entropy(self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)), target)


class Mlp(nn.Module):
    """Two linear layers around an activation, with a residual, dropout and a tied output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), 0.0)
        return F.cross_entropy(self.out(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


class AttentionBlock(nn.Module):
    """Self-attention with a fused projection, causal, scores written out or not."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(6, 24), nn.Linear(8, 6), fused
        self.register_buffer("mask", torch.ones(9, 9, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (part.view(n, t, 2, 4).transpose(1, 2) for part in self.qkv(x).split(8, 2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * 0.5
            y = scores.masked_fill(self.mask[:t, :t] == 0, float("-inf")).softmax(-1) @ v
        return (x + self.out(y.transpose(1, 2).contiguous().view(n, t, 8))).square().mean()


class Rotary(nn.Module):
    """Rotary positions: halves swapped, constants sliced and broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 12)
        self.register_buffer("angles", torch.arange(10.0)[:, None] * torch.tensor([1.0, 0.1]))

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x).unflatten(-1, (3, 4)).transpose(1, 2)
        angles = torch.cat([self.angles, self.angles], -1)[: x.shape[1]]
        first, second = q.chunk(2, -1)
        turned = q * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
        return (turned @ turned.transpose(-2, -1)).softmax(-1).square().sum()


class Chunks(nn.Module):
    """A recurrent layer unrolled in chunks that share weights and hand on their state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.out = (
            nn.Embedding(5, 3),
            nn.LSTM(3, 4, batch_first=True),
            nn.Linear(4, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        state, outputs = None, []
        for chunk in ids.split(2, 1):
            y, state = self.layer(self.words(chunk), state)
            outputs.append(y)
        return F.cross_entropy(self.out(torch.cat(outputs, 1)).transpose(1, 2), ids)


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, skips joined by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(14, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.down(x))
        deep = F.silu(self.deep(skip))
        wide = F.interpolate(deep, scale_factor=2, mode="bilinear")
        return F.mse_loss(self.last(torch.cat([skip, self.up(deep), wide], 1)), x[:, :1])


class Experts(nn.Module):
    """Soft routing over stacked experts, by batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.first, self.second = (nn.Parameter(torch.randn(s)) for s in ((3, 4, 5), (3, 5, 4)))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        chosen, where = weights.topk(2, -1)
        kept = torch.zeros_like(weights).scatter(-1, where, chosen)
        hidden = F.gelu(torch.einsum("nti,eij->entj", x, self.first))
        mixed = torch.einsum("entj,ejo->nteo", hidden, self.second)
        return (mixed * kept.unsqueeze(-1)).sum(-2).square().mean()


class BatchSecond(nn.Module):
    """Time first: the batch is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.attend, self.out = nn.GRU(3, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        mixed, _ = self.attend(y, y, y, need_weights=False)
        return self.out(mixed).square().mean()


def own_cases() -> list[Case]:
    """The models above."""
    return [
        of_module("conv_block", ConvBlock, normal(3, 8, 7), labels_below(4), may_split=keep_statistics_whole),
        of_module("mlp", Mlp, labels_below(7, 5)),
        of_module("attention_fused", lambda: AttentionBlock(fused=True), normal(5, 6)),
        of_module("attention_written_out", lambda: AttentionBlock(fused=False), normal(5, 6)),
        of_module("rotary", Rotary, normal(5, 6)),
        of_module("chunks", Chunks, labels_below(5, 6)),
        of_module("u_net", UNet, normal(2, 6, 8)),
        of_module("experts", Experts, normal(3, 4)),
        of_module("batch_second", BatchSecond, lambda n: torch.randn(5, n, 3, dtype=torch.float64)),
        of_module(
            "encoder_layer", lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), normal(5, 4)
        ),
    ]


_TINY: dict[str, dict[str, Any]] = {
    "lenet": {},
    "rnnlm-2step": {"vocabulary": 11, "hidden": 4},
    "rnntc": {"vocabulary": 11, "hidden": 4, "num_layers": 2, "steps": 4, "chunk": 2},
    "nmt": {"vocabulary": 11, "hidden": 4, "steps": 4, "chunk": 2},
    "gpt2": {"num_layers": 1, "width": 8, "num_heads": 2, "vocabulary": 11, "sequence": 6, "dropout": 0.0},
    "bert-large": {
        "num_layers": 1,
        "width": 8,
        "num_heads": 2,
        "vocabulary": 11,
        "sequence": 6,
        "dropout": 0.0,
    },
    "llama-7b": {"num_layers": 1, "width": 8, "num_heads": 2, "hidden": 12, "vocabulary": 11, "sequence": 6},
    "vit-b-16": {
        "num_layers": 1,
        "width": 8,
        "num_heads": 2,
        "patch": 4,
        "image_size": 8,
        "num_classes": 5,
        "dropout": 0.0,
    },
    "dlrm": {"width": 16, "max_rows": 9},
    "moe": {
        "num_layers": 1,
        "width": 8,
        "num_heads": 2,
        "num_experts": 4,
        "vocabulary": 11,
        "sequence": 5,
        "dropout": 0.0,
    },
    "inception-v3": {"num_classes": 5, "width": 2, "image_size": 75, "dropout": 0.0},
    "resnet-101": {"num_classes": 5, "width": 4, "image_size": 32, "num_stages": 2},
    "alexnet": {"num_classes": 5, "width": 4, "linear_width": 6, "dropout": 0.0},
}


def zoo_case(name: str) -> Case:
    """A zoo model, so small that it runs in a moment."""

    def factory(batch: int) -> tuple[nn.Module, tuple[Any, ...]]:
        with in_double():
            torch.manual_seed(0)
            module, args, *_ = zoo.build(name, batch, **_TINY[name])
        return module, tuple(args)

    return Case(name=name, factory=factory, may_split=keep_statistics_whole)


def zoo_names() -> tuple[str, ...]:
    """The zoo models that have a small form here."""
    return tuple(_TINY)
