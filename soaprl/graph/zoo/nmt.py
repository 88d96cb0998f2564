"""NMT: the paper's neural machine translation model, an LSTM encoder and decoder with attention."""

import torch
from torch import Tensor, nn

from soaprl.graph.zoo.unrolled import UnrolledLSTM, mean_cross_entropy


class Attention(nn.Module):
    """Global attention with the "general" score (Luong, Pham, Manning 2015, sections 3.1 and 3.3)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.combine = nn.Linear(2 * hidden, hidden, bias=False)

    def forward(self, decoded: Tensor, memory: Tensor) -> Tensor:
        """The attentional states, shape (batch, steps, hidden).

        Args:
            decoded: Decoder outputs of shape (batch, steps, hidden).
            memory: Encoder outputs of shape (batch, source steps, hidden).
        """
        scores = torch.bmm(self.query(decoded), memory.transpose(1, 2))  # (batch, steps, source steps)
        context = torch.bmm(scores.softmax(dim=-1), memory)
        return torch.tanh(self.combine(torch.cat((context, decoded), dim=-1)))


class Translator(nn.Module):
    """Reads a sentence with the encoder; predicts each next word of its translation."""

    def __init__(self, *, vocabulary: int, hidden: int, num_layers: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.source_embedding = nn.Embedding(vocabulary, hidden)
        self.target_embedding = nn.Embedding(vocabulary, hidden)
        self.encoder = UnrolledLSTM(hidden, hidden, num_layers)
        self.decoder = UnrolledLSTM(hidden, hidden, num_layers)
        self.attention = Attention(hidden)
        self.softmax = nn.Linear(hidden, vocabulary)

    def forward(self, source: Tensor, translation: Tensor, targets: Tensor) -> Tensor:
        """The loss; all arguments are word ids of shape (batch, steps)."""
        encoded, states = self.encoder(
            [self.source_embedding(w) for w in torch.split(source, self.chunk, dim=1)]
        )
        memory = torch.cat(encoded, dim=1)
        words = torch.split(translation, self.chunk, dim=1)
        decoded, _ = self.decoder([self.target_embedding(w) for w in words], states)
        logits = [self.softmax(self.attention(d, memory)) for d in decoded]
        return mean_cross_entropy(logits, torch.split(targets, self.chunk, dim=1))


def nmt(
    batch_size: int,
    *,
    vocabulary: int = 32_000,
    hidden: int = 1024,
    num_layers: int = 2,
    steps: int = 40,
    chunk: int = 10,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The translator; source, translation and its next words, each of shape (batch, steps)."""
    model = Translator(vocabulary=vocabulary, hidden=hidden, num_layers=num_layers, chunk=chunk)
    return model, tuple(torch.randint(vocabulary, (batch_size, steps)) for _ in range(3))
