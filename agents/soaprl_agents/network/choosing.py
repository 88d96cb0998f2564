"""Distributions over candidates, of which some are masked: a masked one has probability exactly 0."""

import torch
from torch import Tensor


def log_probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each candidate, minus infinity where masked.

    Args:
        scores: [..., K], any finite number where masked.
        mask: bool [..., K]; at least one candidate of each row.
    """
    return torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)


def entropy(log_probability: Tensor) -> Tensor:
    """Entropy in nats of each row, [...]; of its gradient masked candidates have none."""
    finite = log_probability.masked_fill(log_probability == -torch.inf, 0.0)
    return -(log_probability.exp() * finite).sum(dim=-1)


def divergence(log_probability: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats of `other` from each row, [...]; masks are equal."""
    difference = (log_probability - other).masked_fill(log_probability == -torch.inf, 0.0)
    return (log_probability.exp() * difference).sum(dim=-1)


def sample(log_probability: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One candidate for each row of [B, K], drawn with its probability; i64 [B]."""
    return torch.multinomial(log_probability.exp(), 1, generator=generator).squeeze(-1)


def greedy(log_probability: Tensor) -> Tensor:
    """The most probable candidate of each row, the first of equal ones; i64 [...]."""
    return log_probability.argmax(dim=-1)
