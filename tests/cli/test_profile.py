"""`soaprl profile`, and the commands that read what it wrote."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


@pytest.fixture
def profile(soaprl: Soaprl, model_file: Path, tmp_path: Path) -> Path:
    """A profile of the user's model for two processes."""
    path = tmp_path / "profile.db"
    finished = soaprl("profile", f"{model_file}:factory", "--cluster", "cpu-1x2", "-b", 8, "--out", path)
    assert finished.code == 0, finished.err
    return path


def test_a_model_is_measured_once_and_set_beside_the_roofline(
    soaprl: Soaprl, profile: Path, model_file: Path
) -> None:
    again = soaprl("profile", f"{model_file}:factory", "-c", "cpu-1x2", "-b", 8, "--out", profile, "--json")
    assert again.code == 0
    found = again.json
    assert (found["num_measured"], found["unmeasurable"], found["device_type"]) == (0, [], "cpu")
    assert found["num_shards"] > 4
    assert {d["kind"] for d in found["deviations"]} >= {"linear"}
    assert all(d["measured_s"] > 0 and d["roofline_s"] > 0 for d in found["deviations"])


def test_more_rounds_measure_everything_again(soaprl: Soaprl, model_file: Path, tmp_path: Path) -> None:
    words = (
        "profile",
        f"{model_file}:factory",
        "-c",
        "cpu-1x2",
        "-b",
        8,
        "--out",
        tmp_path / "p.db",
        "--json",
    )
    first, more = soaprl(*words).json, soaprl(*words, "--rounds", 3).json
    assert first["num_measured"] == first["num_shards"]
    assert (more["rounds"], more["num_measured"]) == (3, 2 * more["num_shards"])
    assert soaprl(*words[:-1], "--rounds", 2).err.count(": 0 measured now") == 1


def test_the_table_names_operators_and_how_far_they_are(
    soaprl: Soaprl, profile: Path, model_file: Path
) -> None:
    shown = soaprl("profile", f"{model_file}:factory", "-c", "cpu-1x2", "-b", 8, "--out", profile)
    assert "farthest from the roofline" in shown.out
    assert "linear" in shown.out
    assert "nll_from_log_sum_exp" in shown.out
    assert "0 measured now" in shown.err


@pytest.mark.parametrize("command", ["simulate", "search", "compare"])
def test_results_say_how_much_of_them_is_measured(
    soaprl: Soaprl, profile: Path, model_file: Path, command: str
) -> None:
    budget = () if command == "simulate" else ("--budget-evals", 20)
    words = (f"{model_file}:factory", "-c", "cpu-1x2", "-b", 8, "--cost", profile)
    shown = soaprl(command, *words, *budget)
    assert shown.code == 0, shown.err
    assert "compute time: 100% measured" in shown.err
    found = soaprl(command, *words, *budget, "--json").json
    assert found["cost_model"].startswith("profiled(profile.db: cpu = ")
    results = found["results"] if command == "compare" else [found]
    for result in results:
        assert result["cost_sources"] == {"measured": 1.0, "interpolated": 0.0, "roofline": 0.0}


def test_without_a_profile_all_times_are_the_rooflines(soaprl: Soaprl, graph_file: Path) -> None:
    found = soaprl("simulate", graph_file, "-c", "cpu-1x2", "--json").json
    assert found["cost_sources"] == {"measured": 0.0, "interpolated": 0.0, "roofline": 1.0}


def test_a_cluster_of_other_devices_says_what_is_there_and_what_to_do(
    soaprl: Soaprl, profile: Path, model_file: Path
) -> None:
    refused = soaprl("simulate", f"{model_file}:factory", "-c", "p100-1x2", "-b", 8, "--cost", profile)
    assert refused.code == 2
    assert "expected times of p100 in float32" in refused.err
    assert "found cpu" in refused.err
    assert "soaprl profile MODEL --cluster p100-1x2" in refused.err


def test_a_missing_and_a_foreign_file_are_user_errors(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    for path, words in ((tmp_path / "none.db", "there is no profile"), (foreign, "another program")):
        refused = soaprl("simulate", graph_file, "-c", "cpu-1x2", "--cost", path)
        assert refused.code == 2
        assert words in refused.err


def test_a_machine_that_has_no_such_device_says_so(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> None:
    refused = soaprl("profile", graph_file, "-c", "k80-1x2", "--out", tmp_path / "p.db")
    assert refused.code == 2
    assert "--device-type" in refused.err


def test_a_graph_whose_operators_have_no_body_cannot_be_measured_and_says_so(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.db"
    finished = soaprl("profile", graph_file, "-c", "cpu-1x2", "--out", path)
    assert finished.code == 0
    assert "cannot be measured and keep estimates" in finished.err
    shown = soaprl("simulate", graph_file, "-c", "cpu-1x2", "--cost", path)
    assert "100% roofline (linear)" in shown.err


def test_what_is_to_be_measured_must_be_said(soaprl: Soaprl, graph_file: Path) -> None:
    for words, message in (
        ((), "expected a MODEL and --cluster, or --links"),
        ((graph_file,), "expected a MODEL and --cluster"),
        (("--links", "-c", "cpu-1x2"), "needs no MODEL and no --cluster"),
        ((graph_file, "-c", "cpu-1x2", "--device", "tpu"), "unknown device 'tpu'"),
        (("--links",), "torchrun"),
    ):
        refused = soaprl("profile", *words)
        assert refused.code == 2
        assert message in refused.err


@pytest.mark.dist
def test_the_links_of_a_job_become_a_cluster_that_can_be_simulated(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path, root = tmp_path / "links.yaml", Path(__file__).parents[2]
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launched, "-m", "soaprl", "profile", "--links", "--out", str(path)],
        env={**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 - 1") == 1
    found = soaprl("simulate", graph_file, "-c", path, "--json")
    assert found.code == 0, found.err
    assert found.json["cluster"] == "links"
