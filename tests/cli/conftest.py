"""A small saved graph and a runner, shared by the tests of the command line."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from soaprl.cli import run
from soaprl.graph.files import save_graph
from tests.toys import chain

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.classes = nn.Linear(32, 10)

    def forward(self, x, y):
        return F.cross_entropy(self.classes(torch.relu(self.hidden(x))), y)


def factory(batch_size):
    return Net(), (torch.randn(batch_size, 16), torch.randint(10, (batch_size,)))


def raising(batch_size):
    raise RuntimeError("no weights today")


def wrong(batch_size):
    return Net()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


@pytest.fixture
def soaprl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Finished:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    """A saved chain of two operators, batch 8."""
    path = tmp_path / "chain.json"
    save_graph(chain(num_operators=2, sample=8, channel=4), path)
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A user's model file with a good factory and two bad ones."""
    path = tmp_path / "net.py"
    path.write_text(MODEL, encoding="utf-8")
    return path
