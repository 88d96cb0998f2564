"""The policy network: scores the candidates of an operator, and values the state it is in.

A problem is encoded once (`PolicyNetwork.encode`): operators with their candidates and neighbours, devices
with their links. What changes from decision to decision is the *context*: for each candidate of the operator
at hand, how it fits the configurations that the other operators have. Candidate k of operator o scores

    s_k = w . relu(W relu(P_ok + C c_k)),    P_ok = MLP(h_o, x_ok, g)

with h_o the operator's embedding, x_ok the candidate's own features, g the problem's embedding, c_k the
context. P is computed with the encoding, so that a decision costs two small layers for each candidate. The
probabilities are the softmax over the candidates that the mask leaves (pointer-style: Vinyals et al., Pointer
Networks, 2015), so that one network serves graphs, clusters and lists of candidates of any size. The value
reads mean and maximum of the inner hidden layer over the candidates. Implemented in `PolicyNetwork.decide`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from soaprl_agents.network.batch import ProblemBatch
from soaprl_agents.network.config import NetworkConfig
from soaprl_agents.network.encoder import GraphEncoder, Perceptron, pooled


class Encoding(NamedTuple):
    """What the network knows about problems before any decision.

    Attributes:
        candidates: f32 [N, K, hidden], P of the module's equation.
        mask: bool [N, K].
        first: i64 [P + 1], the number of each problem's first operator.
    """

    candidates: Tensor
    mask: Tensor
    first: Tensor

    def rows(self, problem: Tensor, operator: Tensor) -> Tensor:
        """The numbers of operators among those of all problems."""
        return self.first[problem] + operator


class Decision(NamedTuple):
    """What the network says about operators to decide.

    Attributes:
        scores: [B, K]; of no meaning where `mask` is false.
        mask: bool [B, K].
        values: [B].
    """

    scores: Tensor
    mask: Tensor
    values: Tensor


class PolicyNetwork(nn.Module):
    """See the module."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.operator_in = Perceptron(config.operator_width, hidden, hidden)
        self.candidate_in = Perceptron(config.candidate_width, hidden, hidden)
        self.device_in = Perceptron(config.device_width, hidden, hidden)
        self.devices = GraphEncoder(
            edge_width=config.device_edge_width, hidden=hidden, rounds=config.device_rounds
        )
        self.operators = GraphEncoder(edge_width=config.edge_width, hidden=hidden, rounds=config.rounds)
        self.candidate_part = nn.Linear(hidden, hidden)
        self.told_part = nn.Linear(3 * hidden, hidden, bias=False)
        self.prepare = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.context_in = nn.Linear(config.context_width, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.value = Perceptron(2 * hidden, hidden, 1)
        # The first policy is nearly uniform, the first values nearly 0.
        for last in (self.score, self.value[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.01)

    def encode(self, batch: ProblemBatch) -> Encoding:
        """What is known about the problems before any decision."""
        devices = self._devices(batch)
        candidates = self.candidate_in(batch.candidates)
        seen = batch.mask.unsqueeze(-1)
        count = seen.sum(dim=1).clamp(min=1)
        mean = (candidates * seen).sum(dim=1) / count
        operators = self.operators(
            self.operator_in(batch.operators) + mean,
            batch.edges,
            batch.edge_features,
            batch.operator_problem,
            devices,
        )
        whole = pooled(operators, batch.operator_problem, batch.num_problems)
        told = torch.cat((operators, whole[batch.operator_problem], devices[batch.operator_problem]), dim=-1)
        prepared = self.prepare(self.candidate_part(candidates) + self.told_part(told).unsqueeze(1))
        return Encoding(prepared, batch.mask, batch.first)

    def decide(self, encoding: Encoding, rows: Tensor, context: Tensor) -> Decision:
        """Scores of the candidates of operators, each in a context of its own.

        Args:
            encoding: Of the problems.
            rows: i64 [B], the operators' numbers (`Encoding.rows`).
            context: f32 [B, K or more, features]; the rest is padding.
        """
        width = encoding.mask.shape[1]
        mask = encoding.mask[rows]
        hidden = encoding.candidates[rows]
        if self.config.uses_context:
            hidden = hidden + self.context_in(context[:, :width])
        hidden = torch.relu(self.inner(torch.relu(hidden)))
        seen = mask.unsqueeze(-1)
        mean = (hidden * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        # Hidden units are at least 0, so that 0 where masked is no maximum but where all are 0.
        most = (hidden * seen).amax(dim=1)
        values = self.value(torch.cat((mean, most), dim=-1)).squeeze(-1)
        return Decision(self.score(hidden).squeeze(-1), mask, values)

    def _devices(self, batch: ProblemBatch) -> Tensor:
        """The clusters' embeddings, [P, hidden]; zeros if they are left out."""
        width, count = self.config.hidden, batch.num_problems
        nothing = batch.devices.new_zeros((count, width))
        if not self.config.uses_devices:
            return nothing
        embedded = self.devices(
            self.device_in(batch.devices),
            batch.device_edges,
            batch.device_edge_features,
            batch.device_problem,
            nothing,
        )
        return pooled(embedded, batch.device_problem, count)
