"""Several networks that decide together.

Networks that have learned the same lessons from other beginnings agree where the lessons said something, and
err differently where they did not. The ensemble's score of a candidate is the mean of the log-probabilities
that its members give it, so that its distribution is their normalized geometric mean: a candidate that one of
them thinks impossible is improbable, however much the others like it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from soaprl_agents.network.batch import ProblemBatch
from soaprl_agents.network.choosing import log_probabilities
from soaprl_agents.network.policy import Decision, Encoding, PolicyNetwork


class Ensemble(nn.Module):
    """Decides as a `PolicyNetwork` does; see the module.

    Args:
        members: The networks, each of any width.
    """

    def __init__(self, members: Sequence[PolicyNetwork]) -> None:
        super().__init__()
        self._modules_of_members = nn.ModuleList(members)
        self._widths = [member.config.hidden for member in members]

    @property
    def members(self) -> list[PolicyNetwork]:
        """The networks."""
        return cast("list[PolicyNetwork]", list(self._modules_of_members))

    def encode(self, batch: ProblemBatch) -> Encoding:
        """What the members know, side by side in the last dimension of ``candidates``."""
        known = [member.encode(batch) for member in self.members]
        return known[0]._replace(candidates=torch.cat([one.candidates for one in known], dim=-1))

    def decide(self, encoding: Encoding, rows: Tensor, context: Tensor) -> Decision:
        """Scores of the candidates of operators, each in a context of its own; values are means.

        Args:
            encoding: Of the problems.
            rows: i64 [B], the operators' numbers (`Encoding.rows`).
            context: f32 [B, K or more, features]; the rest is padding.
        """
        parts = torch.split(encoding.candidates, self._widths, dim=-1)
        decisions = [
            member.decide(encoding._replace(candidates=part), rows, context)
            for member, part in zip(self.members, parts, strict=True)
        ]
        mask = decisions[0].mask
        found = torch.stack([log_probabilities(one.scores, mask) for one in decisions])
        scores = found.mean(dim=0).masked_fill(~mask, 0.0)
        return Decision(scores, mask, torch.stack([one.values for one in decisions]).mean(dim=0))
