import base64
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from soaprl.graph.capture import graph_from_factory
from soaprl.graph.files import graph_fingerprint, load_graph, save_graph
from soaprl.graph.operators import OperatorGraph


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(2, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * torch.tensor([1.0, 2.0, self.scale])).sum()


def captured(scale: float) -> OperatorGraph:
    return graph_from_factory(lambda n: (Scaled(scale), (torch.randn(n, 2),)), 4, name="scaled")


def test_a_tensor_spelled_out_in_the_code_is_kept_with_the_graph(tmp_path: Path) -> None:
    graph = captured(-0.5)
    save_graph(graph, tmp_path / "graph.json")
    for found in (graph, load_graph(tmp_path / "graph.json")):
        (literal,) = found.literals
        content = np.frombuffer(base64.b64decode(literal.data), "<f4")
        assert content.tolist() == [1.0, 2.0, -0.5]
        assert found.tensors[literal.tensor].shape == (3,)


def test_what_a_literal_holds_changes_no_strategy() -> None:
    assert graph_fingerprint(captured(1.0)) == graph_fingerprint(captured(2.0))
