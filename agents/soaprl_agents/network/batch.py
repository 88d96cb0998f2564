"""Several problems as one graph, so that one pass of the network encodes them all."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from soaprl_envs.features import ProblemFeatures
from torch import Tensor


class ProblemBatch(NamedTuple):
    """Problems side by side; operators and devices of all problems are numbered consecutively.

    N operators, E edges, G devices, L edges between devices, K candidates an operator at most, P problems.

    Attributes:
        operators: f32 [N, features].
        edges: i64 [2, E], from producer to consumer.
        edge_features: f32 [E, features].
        operator_problem: i64 [N], the problem of each operator.
        candidates: f32 [N, K, features], zero where there is no candidate.
        mask: bool [N, K], where there is one.
        devices: f32 [G, features].
        device_edges: i64 [2, L].
        device_edge_features: f32 [L, features].
        device_problem: i64 [G].
        first: i64 [P + 1], the number of each problem's first operator, and N.
    """

    operators: Tensor
    edges: Tensor
    edge_features: Tensor
    operator_problem: Tensor
    candidates: Tensor
    mask: Tensor
    devices: Tensor
    device_edges: Tensor
    device_edge_features: Tensor
    device_problem: Tensor
    first: Tensor

    @property
    def num_problems(self) -> int:
        """P."""
        return len(self.first) - 1


def collate(problems: Sequence[ProblemFeatures]) -> ProblemBatch:
    """The problems side by side, candidates padded to the longest list among them."""
    most = max(problem.mask.shape[1] for problem in problems)
    counts = [len(problem.operators) for problem in problems]
    device_counts = [len(problem.devices) for problem in problems]
    first = np.concatenate(([0], np.cumsum(counts)))
    first_device = np.concatenate(([0], np.cumsum(device_counts)))
    edges = [problem.edges + first[i] for i, problem in enumerate(problems)]
    device_edges = [problem.device_edges + first_device[i] for i, problem in enumerate(problems)]
    return ProblemBatch(
        operators=_joined([problem.operators for problem in problems]),
        edges=torch.from_numpy(np.concatenate(edges, axis=1)),
        edge_features=_joined([problem.edge_features for problem in problems]),
        operator_problem=torch.from_numpy(np.repeat(np.arange(len(problems)), counts)),
        candidates=_joined([_padded(problem.candidates, most) for problem in problems]),
        mask=_joined([_padded(problem.mask, most) for problem in problems]),
        devices=_joined([problem.devices for problem in problems]),
        device_edges=torch.from_numpy(np.concatenate(device_edges, axis=1)),
        device_edge_features=_joined([problem.device_edge_features for problem in problems]),
        device_problem=torch.from_numpy(np.repeat(np.arange(len(problems)), device_counts)),
        first=torch.from_numpy(first),
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """`rows` [N, K, ...] with zeros up to `length` candidates."""
    missing = length - rows.shape[1]
    if not missing:
        return rows
    return np.pad(rows, ((0, 0), (0, missing)) + ((0, 0),) * (rows.ndim - 2))
