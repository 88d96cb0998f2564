"""Whatever a user gets wrong: exit code 2, one message on standard error, nothing half-written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]

CLUSTER = """
format: soaprl-cluster
version: 1
name: mine
nodes:
  - count: 1
    devices: {p100: 2}
    topology: {kind: switch, bandwidth_bytes_per_s: 1.0e+10, latency_s: 1.0e-6}
"""


def assert_refused(finished: Finished, *words: str) -> None:
    assert finished.code == 2
    assert finished.out == ""
    message = finished.err.strip().splitlines()[-1]
    assert message.startswith("soaprl: error: ")
    assert "Traceback" not in finished.err
    for word in words:
        assert word in message


@pytest.fixture
def strategy_file(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "strategy.json"
    done = soaprl("search", graph_file, "-c", "p100-1x4", "-m", "data-parallel", "--out", path)
    assert done.code == 0, done.err
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate"], ["Missing argument"]),
        (["simulate", "nmt"], ["--cluster"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--fast"], ["No such option", "--fast"]),
        (["serach"], ["No such command"]),
        (["search", "nmt", "-c", "p100-1x4", "--seed", "x"], ["--seed"]),
        (["simulate", "ntm", "-c", "p100-1x4"], ["unknown model 'ntm'", "Did you mean", "'nmt'"]),
        (["models", "ntm"], ["Did you mean", "'nmt'"]),
        (["simulate", "nmt", "-c", "p10-1x4"], ["unknown cluster kind", "Did you mean", "'p100'"]),
        (["simulate", "nmt", "-c", "p100"], ["KIND-NODESxGPUS"]),
        (["search", "nmt", "-c", "p100-1x4", "-m", "mcmcm"], ["unknown method", "Did you mean 'mcmc'"]),
        (["compare", "nmt", "-c", "p100-1x4", "--methods", "mcmc,rondom"], ["'rondom'", "'random'"]),
        (["simulate", "nmt", "-c", "p100-1x4", "-s", "mcmmc"], ["unknown method", "'mcmc'"]),
        (["simulate", "nmt", "-c", "p100-1x4", "-b", "2"], ["batch smaller than the devices", "4", "2"]),
        (["search", "nmt", "-c", "p100-1x4", "-b", "0"], ["batch smaller than the devices"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--option", "chunk"], ["NAME=VALUE", "'chunk'"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--option", "chunks=2"], ["'chunks'", "Did you mean 'chunk'"]),
        (["search", "nmt", "-c", "p100-1x4", "--budget-evals", "0"], ["budget", "0"]),
        (["search", "nmt", "-c", "p100-1x4", "--budget-seconds", "-1"], ["budget", "-1"]),
        (["search", "nmt", "-c", "p100-1x4", "--budget-seconds", "inf"], ["budget", "inf"]),
        (["search", "nmt", "-c", "p100-1x4", "--chains", "0"], ["--chains", "greater than or equal to 1"]),
        (["search", "nmt", "-c", "p100-1x4", "--seed", "-1"], ["--seed", "greater than or equal to 0"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--option", "chunk=nan"], ["NAME=VALUE", "'chunk=nan'"]),
        (["simulate", "nmt", "-c", "p100-1x4", "-b", "4.5"], ["--batch-size", "integer. See soaprl --help"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--save-graph", "nmt.txt"], [".json or .json.gz"]),
        (["simulate", "nmt", "-c", "p100-1x4", "--trace", "/dev/null"], ["'/dev/null'", "device"]),
        (["clusters", "--out", "x.yaml"], ["--out needs the cluster"]),
        (["export", "missing.json"], ["missing.json"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].islower() else "",
)
def test_a_wrong_word_is_answered_with_what_to_do(
    soaprl: Soaprl, arguments: list[str], words: list[str]
) -> None:
    assert_refused(soaprl(*arguments), *words)


@pytest.mark.parametrize("name", ["missing.json", "missing.py:factory", "missing.py"])
def test_a_missing_model_file(soaprl: Soaprl, name: str) -> None:
    assert_refused(soaprl("simulate", name, "-c", "p100-1x2"), name.partition(":")[0])


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("raising", ["RuntimeError", "no weights today"]),
        ("wrong", ["expected (module, args)", "Net"]),
        ("factori", ["no function 'factori'", "factory"]),
    ],
)
def test_a_factory_that_fails(soaprl: Soaprl, model_file: Path, factory: str, words: list[str]) -> None:
    assert_refused(soaprl("simulate", f"{model_file}:{factory}", "-c", "p100-1x2"), *words)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 200_000, '{"format": "soaprl-graph", "version": 99}'], ids=range(5)
)
def test_a_corrupt_saved_graph(soaprl: Soaprl, tmp_path: Path, content: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(content)
    assert_refused(soaprl("simulate", path, "-c", "p100-1x2"), str(path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.0e+10", "-1.0e+10", ["bandwidth_bytes_per_s", "-1"]),
        ("bandwidth_bytes_per_s", "bandwith_bytes_per_s", ["'bandwith_bytes_per_s'", "Did you mean"]),
        ("p100: 2", "p200: 2", ["device type 'p200'", "'p100'"]),
        ("name: mine", "name: [", ["expected YAML"]),
        ("    topology", "    # topology", ["gpu"]),
    ],
)
def test_a_wrong_cluster_file(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER.replace(old, new))
    assert_refused(soaprl("simulate", graph_file, "-c", path), *words)


def test_the_cluster_file_without_mistakes_is_accepted(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    assert soaprl("simulate", graph_file, "-c", path).code == 0


def first_operator(content: Mapping[str, Any]) -> dict[str, Any]:
    found = next(iter(content["operators"].values()))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: first_operator(c).update(devices=[0, 1, 2, 99]), ["device", "99"]),
        (lambda c: first_operator(c).update(devices=[0, 1]), ["4", "2"]),
        (lambda c: first_operator(c).update(degrees={"nothing": 4}), ["nothing"]),
        (lambda c: c["operators"].pop("op0"), ["another model", "op0"]),
        (lambda c: c.update(graph_fingerprint="0" * 64), ["fingerprint"]),
        (lambda c: c.update(version=99), ["version", "99"]),
        (lambda c: c.update(extra=1), ["extra"]),
        (lambda c: c.update(format="other"), ["soaprl-strategy"]),
    ],
    ids=["device", "too few devices", "factor", "model", "fingerprint", "version", "unknown key", "format"],
)
@pytest.mark.parametrize("command", ["simulate", "export"])
def test_a_strategy_that_does_not_fit(
    soaprl: Soaprl,
    graph_file: Path,
    strategy_file: Path,
    command: str,
    change: Callable[[dict[str, Any]], object],
    words: list[str],
) -> None:
    path = rewritten(strategy_file, change)
    if command == "simulate":
        finished = soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", path)
    else:
        finished = soaprl("export", path)
    assert_refused(finished, *words)


@pytest.mark.parametrize("content", ["", "{", "not json", "[" * 200_000], ids=range(4))
def test_a_corrupt_strategy(soaprl: Soaprl, graph_file: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    assert_refused(soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", path), str(path))
    assert_refused(soaprl("export", path), str(path))


def test_a_corrupt_or_foreign_search_state(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> None:
    search = ["search", graph_file, "-c", "p100-1x2", "--budget-evals", "20"]
    state = tmp_path / "strategy.state.json"
    assert_refused(soaprl(*search, "--resume", state), str(state))
    assert soaprl(*search, "--out", tmp_path / "strategy.json").code == 0
    assert_refused(soaprl(*search, "--seed", "1", "--resume", state), "seed")
    state.write_text("{")
    assert_refused(soaprl(*search, "--resume", state), str(state))
    assert_refused(soaprl(*search, "-m", "random", "--resume", state), "random", "mcmc")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "GRAPH", "-c", "p100-1x2", "--trace", "missing/trace.json"],
        ["simulate", "GRAPH", "-c", "p100-1x2", "--save-graph", "missing/graph.json"],
        ["search", "GRAPH", "-c", "p100-1x2", "--out", "missing/strategy.json"],
        ["export", "STRATEGY", "--out", "missing/strategy.txt"],
        ["clusters", "p100-1x2", "--out", "missing/cluster.yaml"],
        ["demo", "--out", "GRAPH"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_cannot_be_written_is_said_and_nothing_is_left(
    soaprl: Soaprl, graph_file: Path, strategy_file: Path, tmp_path: Path, arguments: list[str]
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = {"GRAPH": str(graph_file), "STRATEGY": str(strategy_file)}
    assert_refused(soaprl(*[words.get(word, word) for word in arguments]), "cannot write")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_strategy_of_a_larger_cluster_is_said_to_be_one(
    soaprl: Soaprl, graph_file: Path, strategy_file: Path
) -> None:
    done = soaprl("simulate", graph_file, "-c", "p100-1x2", "-s", strategy_file)
    assert_refused(done, "another cluster", "'p100-1x4'", "at least 4 devices", "'p100-1x2' has 2")


@pytest.mark.parametrize(
    ("name", "words"), [("k80-1x4", ["p100-1x4", "k80-1x4"]), ("p100-1x4", ["of the name p100-1x4"])]
)
def test_a_strategy_of_another_cluster_is_simulated_with_a_warning(
    soaprl: Soaprl, graph_file: Path, strategy_file: Path, tmp_path: Path, name: str, words: list[str]
) -> None:
    cluster = tmp_path / "cluster.yaml"
    assert soaprl("clusters", "k80-1x4", "--out", cluster).code == 0
    cluster.write_text(cluster.read_text().replace("name: k80-1x4", f"name: {name}"))
    done = soaprl("simulate", graph_file, "-c", cluster, "-s", strategy_file, "--json")
    assert done.code == 0
    assert done.json["cluster"] == name
    warning = next(line for line in done.err.splitlines() if "warning" in line)
    assert all(word in warning for word in (*words, str(strategy_file)))
