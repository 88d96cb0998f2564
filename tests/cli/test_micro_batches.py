"""Micro-batches on the command line: found, kept in a file, simulated again, compared, compiled."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


def test_a_pipeline_found_is_simulated_from_its_file_to_the_same_time(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "strategy.json"
    found = soaprl(
        "search", graph_file, "-c", "p100-1x4", "--method", "pipeline", "--out", path, "--json"
    ).json
    assert found["method"] == "pipeline"
    content = json.loads(path.read_text())
    assert found["strategy"] == content
    assert content["micro_batches"] > 1
    assert content["schedule"] in ("1f1b", "gpipe")
    assert {row["stage"] for row in content["operators"].values()} >= {0, 1}
    again = soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", path, "--json").json
    assert again["iteration_time_s"] == found["iteration_time_s"]
    by_method = soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", "pipeline", "--json").json
    assert by_method["iteration_time_s"] == found["iteration_time_s"]
    text = soaprl("export", path).out
    assert f"{content['micro_batches']} micro-batches, {content['schedule']} over" in text


def test_the_timeline_of_a_pipeline_names_micro_batches_and_a_saved_graph_has_none(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    trace, graph = tmp_path / "trace.json", tmp_path / "graph.json"
    done = soaprl(
        "simulate", graph_file, "-c", "p100-1x4", "-s", "pipeline", "--trace", trace, "--save-graph", graph
    )
    assert done.code == 0, done.err
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"op0@0[0]", "backward op0@1[0]"} <= names
    assert [o["name"] for o in json.loads(graph.read_text())["operators"]] == [
        o["name"] for o in json.loads(graph_file.read_text())["operators"]
    ]


def test_compare_shows_pipelines_beside_other_methods(soaprl: Soaprl, graph_file: Path) -> None:
    methods = "data-parallel,pipeline,accumulation"
    done = soaprl("compare", graph_file, "-c", "p100-1x4", "--methods", methods, "--json")
    assert [row["method"] for row in done.json["results"]] == methods.split(",")


def test_a_pipeline_that_was_found_has_a_program_with_every_micro_batch(
    soaprl: Soaprl, tmp_path: Path
) -> None:
    path = tmp_path / "strategy.json"
    found = soaprl(
        "search", "lenet", "--batch-size", "8", "-c", "cpu-1x2", "--method", "pipeline", "--out", path
    )
    assert found.code == 0, found.err
    done = soaprl("run", path, "--dry-run")
    assert done.code == 0, done.err
    number = json.loads(path.read_text())["micro_batches"]
    assert number > 1
    assert all(f"images@{k}" in done.out for k in range(number))


def test_a_search_begins_with_a_pipeline_from_a_file_and_keeps_its_micro_batches(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "pipeline.json", tmp_path / "found.json"
    first = soaprl("search", graph_file, "-c", "p100-1x4", "-m", "pipeline", "--out", path, "--json").json
    options = ("--start", path, "-m", "coordinate-descent", "--budget-evals", 40, "--out", out, "--json")
    found = soaprl("search", graph_file, "-c", "p100-1x4", *options).json
    assert found["iteration_time_s"] <= first["iteration_time_s"]
    for key in ("micro_batches", "schedule"):
        assert found["strategy"][key] == first["strategy"][key]
    again = soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", out, "--json").json
    assert again["iteration_time_s"] == found["iteration_time_s"]


def test_a_number_of_micro_batches_is_for_searches_and_comparisons(soaprl: Soaprl, graph_file: Path) -> None:
    options = ("-c", "p100-1x2", "--micro-batches", 2, "--budget-evals", 30, "--json")
    found = soaprl("search", graph_file, *options).json
    assert (found["strategy"]["micro_batches"], found["strategy"]["schedule"]) == (2, "1f1b")
    compared = soaprl("compare", graph_file, "--methods", "data-parallel,exhaustive", *options).json
    assert [row["method"] for row in compared["results"]] == ["data-parallel"]
    assert "without micro-batches alone" in compared["skipped"][0]["reason"]
    done = soaprl("search", graph_file, "-c", "p100-1x2", "--micro-batches", 7)
    assert done.code == 2
    assert "found 7" in " ".join(done.err.split())
    assert "Traceback" not in done.err
