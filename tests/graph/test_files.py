"""Saved graphs: round trips, fingerprints, damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from soaprl.errors import GraphError
from soaprl.graph.capture import capture_model
from soaprl.graph.files import graph_fingerprint, load_graph, save_graph
from soaprl.graph.operators import OperatorGraph
from tests import toys


@pytest.fixture(scope="module")
def graph() -> OperatorGraph:
    return capture_model("rnnlm-2step", 4)


@pytest.mark.parametrize("name", ["graph.json", "graph.json.gz"])
def test_a_saved_graph_loads_as_it_was(graph: OperatorGraph, tmp_path: Path, name: str) -> None:
    save_graph(graph, tmp_path / name)
    assert load_graph(tmp_path / name) == graph


def test_loading_a_graph_does_not_import_torch(graph: OperatorGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    save_graph(graph, path)
    code = (
        "import sys; from pathlib import Path; from soaprl.graph.files import load_graph; "
        f"load_graph(Path({str(path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fingerprint_is_of_the_content_not_of_the_name() -> None:
    one, other = toys.chain(num_operators=2), toys.chain(num_operators=3)
    assert graph_fingerprint(one) == graph_fingerprint(toys.chain(num_operators=2))
    assert graph_fingerprint(one) != graph_fingerprint(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a saved graph"),
        ("[]", "expected format 'soaprl-graph', found 'list'"),
        ('{"format": "soaprl-graph", "version": 99}', "has version 99"),
        ('{"format": "soaprl-graph", "version": 1, "name": "x"}', "is damaged"),
    ],
)
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(content)
    with pytest.raises(GraphError, match=message):
        load_graph(path)


def test_a_truncated_gzip_is_a_clear_error(graph: OperatorGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.json.gz"
    save_graph(graph, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GraphError, match="is not a saved graph"):
        load_graph(path)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot read the graph file"):
        load_graph(tmp_path / "nothing.json")


def test_saved_json_is_plain(graph: OperatorGraph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "graph.json")
    content = json.loads((tmp_path / "graph.json").read_text())
    assert content["batch_size"] == 4
    assert len(content["operators"]) == len(graph.operators)
