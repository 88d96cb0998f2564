import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soaprl.cli import searching
from soaprl.search.task import Budget, Progress, ProgressReport
from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]

STABLE_KEYS = {
    "iteration_time_s",
    "throughput_samples_per_s",
    "peak_memory_bytes",
    "communication_bytes",
    "num_evaluations",
    "search_time_s",
    "method",
}


def test_simulate_prints_a_table_and_the_memory_of_each_device(soaprl: Soaprl, graph_file: Path) -> None:
    done = soaprl("simulate", graph_file, "-c", "p100-1x4", "--memory")
    assert done.code == 0
    assert "data-parallel" in done.out
    assert all(f"node0/gpu{i}" in done.out for i in range(4))


def test_json_of_simulate_has_the_stable_keys(soaprl: Soaprl, graph_file: Path) -> None:
    found = soaprl("simulate", graph_file, "-c", "p100-1x4", "--json").json
    assert {*STABLE_KEYS, "strategy"} <= found.keys()
    assert found["throughput_samples_per_s"] == pytest.approx(8 / found["iteration_time_s"])
    assert max(device["peak_bytes"] for device in found["devices"]) == found["peak_memory_bytes"]
    parts = ("activation_bytes", "gradient_bytes", "synchronization_bytes")
    assert sum(found[part] for part in parts) == found["communication_bytes"]


def test_a_file_with_a_factory_is_simulated_and_saved_as_a_graph(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "net.json.gz"
    model = f"{model_file}:factory"
    captured = soaprl("simulate", model, "-c", "p100-1x2", "-b", "32", "--save-graph", graph, "--json")
    assert captured.code == 0, captured.err
    saved = soaprl("simulate", graph, "-c", "p100-1x2", "--json").json
    assert saved["iteration_time_s"] == captured.json["iteration_time_s"]
    assert saved["batch_size"] == 32


def test_what_a_model_prints_does_not_mix_with_the_result(soaprl: Soaprl, tmp_path: Path) -> None:
    path = tmp_path / "talking.py"
    path.write_text(
        "import torch\n"
        "print('imported')\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        print('called')\n"
        "        return super().forward(x).sum()\n"
        "def factory(batch_size):\n"
        "    print('made')\n"
        "    return Net(4, 2), (torch.zeros(batch_size, 4),)\n"
    )
    done = soaprl("simulate", f"{path}:factory", "-c", "p100-1x2", "--json")
    assert done.code == 0, done.err
    assert done.json["method"] == "data-parallel"
    assert {"imported", "made", "called"} <= set(done.err.splitlines())


def test_a_batch_defaults_to_64_a_device_for_a_file(soaprl: Soaprl, model_file: Path) -> None:
    found = soaprl("simulate", f"{model_file}:factory", "-c", "p100-1x2", "--json").json
    assert found["batch_size"] == 2 * 64


def test_a_batch_and_options_of_the_zoo_are_passed_on(soaprl: Soaprl) -> None:
    words = ["simulate", "lenet", "-c", "p100-1x2", "--json", "--option", "num_classes=7"]
    assert soaprl(*words).json["batch_size"] == 2 * 64
    found = soaprl(*words, "--batch-size", "6").json
    assert found["batch_size"] == 6
    assert found["strategy"]["model"] == {"source": "zoo", "name": "lenet", "options": {"num_classes": 7}}


def test_a_saved_graph_is_simulated_and_searched_without_torch(graph_file: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from soaprl.cli import run\n"
        f"run(['simulate', {str(graph_file)!r}, '-c', 'p100-1x2'])\n"
        f"sys.exit(run(['compare', {str(graph_file)!r}, '-c', 'p100-1x2', '--budget-evals', '10']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_trace_is_a_timeline_that_ends_with_the_iteration(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    done = soaprl("simulate", graph_file, "-c", "p100-1x4", "--trace", path, "--json")
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    # Chrome traces count microseconds.
    assert max(e["ts"] + e["dur"] for e in events) == pytest.approx(done.json["iteration_time_s"] * 1e6)


def test_a_strategy_found_is_simulated_from_its_file_to_the_same_time(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "strategy.json"
    found = soaprl(
        "search", graph_file, "-c", "p100-1x4", "--budget-evals", "50", "--out", path, "--json"
    ).json
    assert {*STABLE_KEYS, "strategy"} <= found.keys()
    assert found["method"] == "mcmc"
    assert found["strategy"] == json.loads(path.read_text())
    again = soaprl("simulate", graph_file, "-c", "p100-1x4", "-s", path, "--json").json
    assert again["iteration_time_s"] == found["iteration_time_s"]
    assert again["strategy"]["predicted_iteration_time_s"] == found["iteration_time_s"]


def test_equal_seeds_find_equal_strategies(soaprl: Soaprl, graph_file: Path) -> None:
    words = ["search", graph_file, "-c", "p100-1x4", "--budget-evals", "60", "--seed", "3", "--json"]
    first, second = soaprl(*words).json, soaprl(*words).json
    assert first["strategy"]["operators"] == second["strategy"]["operators"]


def test_a_strategy_of_a_users_file_and_cluster_needs_nothing_else(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    cluster, strategy = tmp_path / "mine.yaml", tmp_path / "strategy.json"
    assert soaprl("clusters", "p100-1x2", "--out", cluster).code == 0
    cluster.write_text(cluster.read_text().replace("p100-1x2", "my-machine"))
    searched = soaprl(
        "search", f"{model_file}:factory", "-c", cluster, "--budget-evals", "20", "-o", strategy
    )
    assert searched.code == 0, searched.err
    cluster.unlink()
    exported = soaprl("export", strategy)
    assert exported.code == 0, exported.err
    assert "my-machine" in exported.out


def test_export_prints_or_writes_text_and_dot(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> None:
    strategy, dot = tmp_path / "strategy.json", tmp_path / "graph.dot"
    soaprl("search", graph_file, "-c", "p100-1x2", "-m", "data-parallel", "-o", strategy)
    assert "sample 2 (S)" in soaprl("export", strategy, "--format", "text").out
    assert soaprl("export", strategy, "--format", "dot", "--out", dot).out == ""
    assert dot.read_text().startswith("digraph")
    assert soaprl("export", strategy, "--json").json["format"] == "text"


def test_compare_sets_methods_side_by_side(soaprl: Soaprl, graph_file: Path) -> None:
    words = ["compare", graph_file, "-c", "p100-1x4", "--methods", "data-parallel,random,mcmc"]
    found = soaprl(*words, "--budget-evals", "30", "--json").json
    assert [row["method"] for row in found["results"]] == ["data-parallel", "random", "mcmc"]
    assert all(row.keys() >= STABLE_KEYS for row in found["results"])
    assert [row["num_evaluations"] <= 30 for row in found["results"]] == [True] * 3
    assert "1.00x" in soaprl(*words, "--budget-evals", "30").out


def test_a_strategy_that_does_not_fit_is_refused_and_not_written(soaprl: Soaprl, tmp_path: Path) -> None:
    # 6.7 billion float32 parameters with gradients and two moments are 108 GB; a K80 has 12.
    path = tmp_path / "strategy.json"
    done = soaprl("search", "llama-7b", "-c", "k80-1x2", "-m", "data-parallel", "-o", path)
    assert done.code == 2
    assert "model too big for memory" in done.err.splitlines()[-1]
    assert done.out == ""
    assert not path.exists()


def test_an_interrupted_search_shows_and_keeps_its_best_and_goes_on(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "strategy.json", tmp_path / "strategy.state.json"
    words = ["search", graph_file, "-c", "p100-1x4", "--json"]

    @contextmanager
    def interrupting(budget: Budget) -> Iterator[Progress]:
        sent: list[bool] = []

        def listen(report: ProgressReport) -> None:
            if report.num_evaluations > 1 and not sent:
                sent.append(True)
                signal.raise_signal(signal.SIGINT)

        yield listen

    with monkeypatch.context() as patch:
        patch.setattr(searching, "show_progress", interrupting)
        stopped = soaprl(*words, "--budget-evals", "1000000", "--out", path)
    assert stopped.code == 130
    assert stopped.json["num_evaluations"] < 1000000
    assert json.loads(path.read_text()) == stopped.json["strategy"]
    more = stopped.json["num_evaluations"] + 40
    resumed = soaprl(*words, "--budget-evals", str(more), "--resume", state)
    assert resumed.code == 0, resumed.err
    assert resumed.json["num_evaluations"] <= more
    assert resumed.json["iteration_time_s"] <= stopped.json["iteration_time_s"]


def test_ctrl_c_in_a_terminal_ends_a_search_with_whole_files(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path, state = tmp_path / "strategy.json", tmp_path / "strategy.state.json"
    words = ["search", str(graph_file), "-c", "p100-1x4", "--json"]
    # A process of its own, whose search is sent the signal of Ctrl-C from outside of Python's code.
    program = (
        "import os, signal, subprocess, sys\n"
        "from contextlib import contextmanager\n"
        "from soaprl.cli import main, searching\n"
        "@contextmanager\n"
        "def interrupting(budget):\n"
        "    sent = []\n"
        "    def listen(report):\n"
        # By then everything is compiled: a compiler that is interrupted leaves nothing to show.
        "        if report.num_evaluations > 5000 and not sent:\n"
        # Before it is sent: it may come at once, and then nothing is known of what sent it.
        "            sent.append(True)\n"
        "            subprocess.Popen(['kill', '-INT', str(os.getpid())])\n"
        "    yield listen\n"
        "searching.show_progress = interrupting\n"
        f"sys.argv[1:] = {[*words, '--budget-seconds', '60', '--out', str(path)]!r}\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "soaprl: interrupted"
    stopped = json.loads(done.stdout)
    assert json.loads(path.read_text()) == stopped["strategy"]
    assert isinstance(json.loads(state.read_text()), dict)
    # The budget counts what was evaluated before.
    more = str(stopped["num_evaluations"] + 40)
    resumed = soaprl(*words, "--budget-evals", more, "--resume", state)
    assert resumed.code == 0, resumed.err
    assert resumed.json["num_evaluations"] >= stopped["num_evaluations"]


def test_the_demo_tells_its_story_and_writes_strategy_and_trace(soaprl: Soaprl, tmp_path: Path) -> None:
    done = soaprl("demo", "--out", tmp_path / "new" / "out", "--budget-evals", "40")
    assert done.code == 0, done.err
    for word in ("data-parallel", "model-parallel", "mcmc", "Try next"):
        assert word in done.out
    written = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert written == {"strategy.json", "trace.json"}
    exported = soaprl("export", tmp_path / "new" / "out" / "strategy.json")
    assert exported.code == 0, exported.err
