"""RNNTC and RNNLM: the recurrent text classifier and language model of the paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.graph.zoo.unrolled import UnrolledLSTM, mean_cross_entropy


class TextClassifier(nn.Module):
    """LSTM layers over a text; the state after the last word decides its class."""

    def __init__(
        self, *, vocabulary: int, hidden: int, num_layers: int, num_classes: int, chunk: int
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.recurrent = UnrolledLSTM(hidden, hidden, num_layers)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, words: Tensor, labels: Tensor) -> Tensor:
        """The loss for `words` of shape (batch, steps) and `labels` of shape (batch,)."""
        outputs, _ = self.recurrent([self.embedding(w) for w in torch.split(words, self.chunk, dim=1)])
        return functional.cross_entropy(self.classifier(outputs[-1][:, -1]), labels)


class LanguageModel(nn.Module):
    """LSTM layers that predict the next word after each word of a text."""

    def __init__(self, *, vocabulary: int, hidden: int, num_layers: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.recurrent = UnrolledLSTM(hidden, hidden, num_layers)
        self.softmax = nn.Linear(hidden, vocabulary)

    def forward(self, words: Tensor, targets: Tensor) -> Tensor:
        """The loss for `words` and `targets` of shape (batch, steps)."""
        outputs, _ = self.recurrent([self.embedding(w) for w in torch.split(words, self.chunk, dim=1)])
        logits = [self.softmax(output) for output in outputs]
        return mean_cross_entropy(logits, torch.split(targets, self.chunk, dim=1))


def rnntc(
    batch_size: int,
    *,
    vocabulary: int = 20_000,
    hidden: int = 1024,
    num_layers: int = 4,
    num_classes: int = 2,
    steps: int = 40,
    chunk: int = 10,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The text classifier, words of shape (batch, steps) and labels of shape (batch,)."""
    model = TextClassifier(
        vocabulary=vocabulary, hidden=hidden, num_layers=num_layers, num_classes=num_classes, chunk=chunk
    )
    words = torch.randint(vocabulary, (batch_size, steps))
    return model, (words, torch.randint(num_classes, (batch_size,)))


def rnnlm(
    batch_size: int,
    *,
    vocabulary: int = 10_000,
    hidden: int = 2048,
    num_layers: int = 2,
    steps: int = 40,
    chunk: int = 10,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The language model, words and targets of shape (batch, steps)."""
    model = LanguageModel(vocabulary=vocabulary, hidden=hidden, num_layers=num_layers, chunk=chunk)
    shape = (batch_size, steps)
    return model, (torch.randint(vocabulary, shape), torch.randint(vocabulary, shape))
