"""A GRU encoder, and a decoder of GRU cells, step by step, that attends to it (Bahdanau, Cho, Bengio)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdditiveAttention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, state: Tensor, memory: Tensor) -> Tensor:
        energy = torch.tanh(self.query(state).unsqueeze(1) + self.key(memory))
        weights = functional.softmax(self.score(energy).squeeze(-1), dim=-1)
        return torch.bmm(weights.unsqueeze(1), memory).squeeze(1)


class Seq2Seq(nn.Module):
    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.source = nn.Embedding(vocabulary, hidden)
        self.target = nn.Embedding(vocabulary, hidden)
        self.encoder = nn.GRU(hidden, hidden, num_layers=2, batch_first=True)
        self.attention = AdditiveAttention(hidden)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, source: Tensor, words: Tensor, targets: Tensor) -> Tensor:
        memory, states = self.encoder(self.source(source))
        state = states[-1]
        embedded = self.target(words)
        decoded = []
        for step in range(words.shape[1]):
            context = self.attention(state, memory)
            state = self.cell(torch.cat([embedded[:, step], context], dim=-1), state)
            decoded.append(state)
        logits = self.output(torch.stack(decoded, dim=1))
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def factory(batch_size: int) -> tuple[nn.Module, tuple[()], dict[str, Any]]:
    arguments = {
        "source": torch.randint(200, (batch_size, 7)),
        "words": torch.randint(200, (batch_size, 4)),
        "targets": torch.randint(200, (batch_size, 4)),
    }
    return Seq2Seq(vocabulary=200, hidden=32), (), arguments
