"""`soaprl simulate` on clusters where few devices stand for all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from soaprl.graph.files import save_graph
from tests.cli.conftest import Finished
from tests.toys import chain

Soaprl = Callable[..., Finished]


@pytest.fixture
def wide_graph_file(tmp_path: Path) -> Path:
    """A graph with a sample for each of 4,096 devices."""
    path = tmp_path / "wide.json"
    save_graph(chain(num_operators=3, sample=4096, channel=64), path)
    return path


def test_folding_changes_no_result(soaprl: Soaprl, wide_graph_file: Path) -> None:
    words = ["simulate", wide_graph_file, "-c", "h100-4x4", "--json"]
    folded, whole = soaprl(*words, "--fold"), soaprl(*words, "--no-fold")
    assert "2 devices were simulated for all 16" in folded.err
    assert "were simulated for all" not in whole.err
    found, expected = folded.json, whole.json
    assert (found.pop("num_simulated_devices"), expected.pop("num_simulated_devices")) == (2, 16)
    # Names of tasks in the chain of causes may be those of other devices; seconds spent are nobody's.
    for result in (found, expected):
        for key in ("critical_path", "search_time_s"):
            result.pop(key)
        result["strategy"]["found_by"].pop("search_time_s")
    assert found == expected


def test_small_clusters_are_simulated_whole_and_large_ones_are_not(
    soaprl: Soaprl, wide_graph_file: Path, tmp_path: Path
) -> None:
    small = soaprl("simulate", wide_graph_file, "-c", "h100-2x4", "--json").json
    assert small["num_simulated_devices"] == 8
    trace = tmp_path / "trace.json"
    large = soaprl("simulate", wide_graph_file, "-c", "h100-512x8", "--trace", trace, "--json").json
    assert large["num_simulated_devices"] == 2
    assert len(large["devices"]) == 4096
    assert len({(d["peak_bytes"], d["busy_s"]) for d in large["devices"]}) == 1
    names = [e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "M"]
    assert "node0/gpu0" in names
    assert "node0/gpu2" not in names


def test_a_strategy_file_for_a_large_cluster_folds_as_well(
    soaprl: Soaprl, wide_graph_file: Path, tmp_path: Path
) -> None:
    words = ["simulate", wide_graph_file, "-c", "h100-64x8", "--json"]
    first = soaprl(*words).json
    path = tmp_path / "strategy.json"
    path.write_text(json.dumps(first["strategy"]))
    again = soaprl(*words, "--strategy", path).json
    assert again["iteration_time_s"] == first["iteration_time_s"]
    assert again["num_simulated_devices"] == 2


def test_what_does_not_fold_on_a_large_cluster_is_refused_with_the_reason(
    soaprl: Soaprl, wide_graph_file: Path
) -> None:
    words = ["simulate", wide_graph_file, "-c", "h100-512x8"]
    alone = soaprl(*words, "--strategy", "model-parallel")
    assert alone.code == 2
    assert "4096 devices, more than the 2048 that can be simulated one by one" in alone.err
    assert "runs on one group of devices alone" in alone.err
    assert soaprl(*words, "--no-fold").code == 2
