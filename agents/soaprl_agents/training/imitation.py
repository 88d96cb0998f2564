"""Imitation: the network learns the teacher's rows.

The target of a row is a soft choice among its candidates, sharper the closer the good ones are:

    target_k ~ exp(-excess_k / tau),    tau = clip(SHARPNESS * q, LOW, HIGH)

with q the lower quartile of the row's excesses, so that a row in which all candidates differ by a thousandth
teaches as much as one in which they differ by half; candidates of equal time share their part. The loss is
the cross-entropy; implemented in `row_losses`.

Each step takes a few problems and some rows of each. What a run does is a function of its recipe and of the
lessons; its state (weights, their moving average, optimizer, step) is written often, so that it can be killed
at any time.

Metrics (TensorBoard), each for refining and for sequential rows (`imitation/refining/loss`):

- `loss`: cross-entropy less the target's entropy, in nats; 0 is perfect.
- `regret`: excess of the candidate that the policy finds most probable, at most 0.5 a row; the mean.
- `is_best`: share of rows in which that candidate is within 1e-4 of the best.

`imitation/...` is of the rows that are learned, `valid/...` of the averaged network on other problems.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from soaprl_agents.network import PolicyNetwork, collate, log_probabilities
from soaprl_agents.training.lessons import Lessons
from torch import Tensor

SHARPNESS = 0.1
LOW, HIGH = 3e-4, 2e-2


class Rows(NamedTuple):
    """Rows of several problems, for one step.

    Attributes:
        lessons: Of each problem.
        problem: i64 [B].
        row: i64 [B], the row's number in its problem's lessons.
    """

    lessons: Sequence[Lessons]
    problem: np.ndarray
    row: np.ndarray


def draw_rows(
    lessons: Sequence[Lessons], rng: np.random.Generator, *, num_problems: int, rows_each: int
) -> Rows:
    """Random rows of random problems."""
    taken = rng.choice(len(lessons), size=min(num_problems, len(lessons)), replace=False)
    chosen = [lessons[index] for index in taken.tolist()]
    rows = [rng.integers(len(one.operators), size=rows_each) for one in chosen]
    return Rows(chosen, np.repeat(np.arange(len(chosen)), rows_each), np.concatenate(rows))


def targets(excess: Tensor) -> Tensor:
    """The soft choice of each row, f32 [B, K]; 0 where the excess is infinite."""
    quartile = excess.masked_fill(excess == torch.inf, 10.0).quantile(0.25, dim=-1, keepdim=True)
    tau = (SHARPNESS * quartile).clamp(LOW, HIGH)
    return torch.softmax(-excess / tau, dim=-1)


class RowLosses(NamedTuple):
    """Of each row: cross-entropy less entropy, regret of the most probable, whether that is the best; [B]."""

    loss: Tensor
    regret: Tensor
    is_best: Tensor


def row_losses(network: PolicyNetwork, rows: Rows) -> RowLosses:
    """What the network gets wrong in each row."""
    encoding = network.encode(collate([one.features for one in rows.lessons]))
    context, excess, operators = _stacked(rows, encoding.mask.shape[1])
    numbers = encoding.rows(torch.from_numpy(rows.problem), operators)
    decision = network.decide(encoding, numbers, context)
    log_p = log_probabilities(decision.scores, decision.mask)
    target = targets(excess)
    own = torch.special.entr(target).sum(dim=-1)
    loss = -(target * log_p.masked_fill(~decision.mask, 0.0)).sum(dim=-1) - own
    picked = excess.gather(1, log_p.argmax(dim=-1, keepdim=True)).squeeze(1).clamp(max=0.5)
    return RowLosses(loss, picked, (picked < 1e-4).float())


def _stacked(rows: Rows, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts [B, K, features], excesses [B, K], operators [B]."""
    contexts, excesses, operators = [], [], []
    for index, lessons in enumerate(rows.lessons):
        own = rows.row[rows.problem == index]
        missing = width - lessons.excess.shape[1]
        contexts.append(np.pad(lessons.contexts[own], ((0, 0), (0, missing), (0, 0))))
        excesses.append(np.pad(lessons.excess[own], ((0, 0), (0, missing)), constant_values=np.inf))
        operators.append(lessons.operators[own])
    return (
        torch.from_numpy(np.concatenate(contexts)).float(),
        torch.from_numpy(np.concatenate(excesses)),
        torch.from_numpy(np.concatenate(operators)),
    )
