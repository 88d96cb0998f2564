"""`soaprl validate` from end to end: strategies run on two local processes, beside their simulation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from soaprl.cluster.files import load_cluster
from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


@pytest.mark.dist
def test_strategies_run_once_beside_their_simulation_and_a_second_call_goes_on_from_there(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    few = ("--strategies", 4, "--repeats", 2, "--steps", 1, "--budget-evals", 50)
    calibrated = tmp_path / "calibrated.yaml"
    words = (
        *("validate", f"{model_file}:factory:8", *few, "--methods", "data-parallel,mcmc"),
        *("--out", out, "--calibrate", calibrated),
    )
    first = soaprl(*words)
    assert first.code == 0, first.err
    assert "Spearman" in first.out
    (runs,) = out.glob("*.jsonl")
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    names = [line["strategy"] for line in lines[:4]]
    assert len(set(names)) == 4
    assert [(line["repeat"], line["strategy"]) for line in lines] == [(r, s) for r in (0, 1) for s in names]
    assert all(time_s > 0 for line in lines for time_s in line["times_s"])
    content = json.loads((out / "validation.json").read_text())
    points = content["points"]
    assert len(points) == 4
    assert all(len(p["ran_s"]) == len(p["predicted_busy_s"]) == 2 for p in points)
    assert load_cluster(calibrated).num_devices == 2
    assert "calibrated" in load_cluster(calibrated).overheads.provenance
    assert points[0]["found_by"] == "data-parallel"
    assert [p["repeats_s"] for p in points] == [
        [line["times_s"][0] for line in lines if line["strategy"] == s] for s in names
    ]
    assert "| data-parallel |" in (out / "validation.md").read_text()
    assert (out / "validation.png").read_bytes().startswith(b"\x89PNG")
    (timeline,) = out.glob("worst-*.json")
    assert {e["pid"] for e in json.loads(timeline.read_text())["traceEvents"]} >= {0, 1}

    # A run that was cut off is run again; what is whole stays.
    whole = runs.read_text()
    runs.write_text(whole[: whole.rindex('"times_s"')])
    again = soaprl(*words, "--worst", 0, "--json")
    assert again.code == 0, again.err
    assert runs.read_text().startswith(whole[: whole.rindex("{")])
    assert [p["repeats_s"][0] for p in again.json["points"]] == [p["repeats_s"][0] for p in points]


def test_an_unknown_method_is_said_before_anything_runs(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    refused = soaprl(
        "validate", f"{model_file}:factory:8", "--methods", "data-paralel", "--out", tmp_path / "out"
    )
    assert refused.code == 2
    assert "Did you mean 'data-parallel'" in refused.err
