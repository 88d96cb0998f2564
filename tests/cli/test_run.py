"""`soaprl run` from end to end: on local processes over gloo, and on logical ranks in this process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]

# The runtime runs what was captured, not the model's code: so a rank is made to fail by a thread of its own,
# which its factory starts.
DOOMED = """
import os, signal, threading, time
from pathlib import Path
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x))).square().mean()


def wait_for(condition, end):
    while not condition():
        time.sleep(0.0005)
    end()


def factory(batch_size):
    return Net(), (torch.randn(batch_size, 6),)


def of_rank_1(condition):
    def make(batch_size):
        if os.environ.get("RANK") == "1":
            die = lambda: os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=wait_for, args=(condition, die), daemon=True).start()
        return factory(batch_size)
    return make


OUT = Path(__file__).parent / "out"
WHOLE = OUT / "checkpoints" / "step-00000004"


def writing():
    folder = WHOLE.parent
    return WHOLE.exists() and any(p.name.endswith(".partial") for p in folder.iterdir())


dies_in_a_step = of_rank_1(WHOLE.exists)
dies_while_saving = of_rank_1(writing)


def raises(batch_size):
    if os.environ.get("RANK") == "1":
        raise RuntimeError("no such luck")
    return factory(batch_size)


def interrupts(batch_size):
    rank = os.environ.get("RANK")
    (Path(__file__).parent / f"pid-{rank}").write_text(str(os.getpid()))
    if os.environ.get("RANK") == "1":
        end = lambda: os.kill(os.getppid(), signal.SIGINT)
        threading.Thread(target=wait_for, args=(WHOLE.exists, end), daemon=True).start()
    return factory(batch_size)
"""


@pytest.fixture
def doomed_file(tmp_path: Path) -> Path:
    path = tmp_path / "doomed.py"
    path.write_text(DOOMED, encoding="utf-8")
    return path


def logical(soaprl: Soaprl, model: str, *more: object) -> dict[str, Any]:
    done = soaprl("run", model, "-b", 12, "--executor", "logical", "--dtype", "float64", "--json", *more)
    assert done.code == 0, done.err
    return done.json


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_sharded_state_trains_as_one_process(soaprl: Soaprl, model_file: Path, sharding: str) -> None:
    model = f"{model_file}:factory"
    found = logical(soaprl, model, "-n", 3, "--steps", 3, "--check", "--sharding", sharding)
    assert found["check"]["agrees"]
    assert max(d["relative"] for d in (found["check"]["loss"], *found["check"]["gradients"])) < 1e-12
    assert found["strategy"]["sharding"] == sharding


def test_compressed_gradients_are_checked_within_their_rounding_and_kept_in_strategy_files(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    model, path = f"{model_file}:factory", tmp_path / "short.json"
    exact = logical(soaprl, model, "-n", 2, "--steps", 2, "--check")
    found = logical(soaprl, model, "-n", 2, "--steps", 2, "--check", "--compress", "fp16")
    assert found["check"]["agrees"]
    assert exact["check"]["gradients"][0]["relative"] < 1e-9 < found["check"]["gradients"][0]["relative"]
    soaprl(
        "search", model, "-b", 12, "-c", "cpu-1x2", "-m", "data-parallel", "--compress", "int8", "-o", path
    )
    done = soaprl("run", path, "--steps", 2, "--json")
    assert done.code == 0, done.err
    assert done.json["strategy"]["assumptions"]["gradient_compression"] == "int8"
    assert "what is reduced travels as int8" in soaprl("run", path, "--dry-run").out


def test_a_strategy_file_that_shards_runs_in_processes(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    model, path = f"{model_file}:factory", tmp_path / "sharded.json"
    on = ("-b", 12, "-c", "cpu-1x2", "--method", "data-parallel", "--sharding", "zero3")
    soaprl("search", model, *on, "--out", path)
    done = soaprl("run", path, "--steps", 2, "--check", "--dtype", "float64", "--json")
    assert done.code == 0, done.err
    assert done.json["check"]["agrees"]
    listed = soaprl("run", path, "--dry-run").out
    assert "reduce and scatter gradients over 0,1" in listed
    assert "gather parameters over 0,1" in listed


def test_two_processes_train_as_one_and_what_they_save_goes_on_under_four_ranks(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    model, out, trace = f"{model_file}:factory", tmp_path / "out", tmp_path / "trace.json"
    wanted = ("--steps", 3, "--check", "-o", out, "--trace", trace, "--dtype", "float64", "--json")
    done = soaprl("run", model, "-b", 12, "-n", 2, *wanted)
    assert done.code == 0, done.err
    found = done.json
    assert found["check"]["agrees"]
    assert found["check"]["loss"]["relative"] < 1e-12
    names = {d["what"] for d in found["check"]["gradients"]}
    assert names == {f"{layer}.{kind}" for layer in ("hidden", "classes") for kind in ("weight", "bias")}
    assert found["iteration_time_s"] > 0
    assert found["predicted_iteration_time_s"] > 0
    assert found["throughput_samples_per_s"] == pytest.approx(12 / found["iteration_time_s"])

    events = json.loads(trace.read_text())["traceEvents"]
    ran = {(e["tid"], e["cat"], e["args"]["step"]) for e in events if e["ph"] == "X" and e["pid"] == 0}
    kinds = ("load", "forward", "backward", "reduce", "update")
    assert {(r, kind, step) for r in (0, 1) for kind in kinds for step in (1, 2, 3)} <= ran
    assert any(e["ph"] == "X" and e["pid"] == 1 for e in events), "the simulated devices are beside it"

    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == found["losses"]
    state = torch.load(out / "model.pt", weights_only=True)
    assert {name: tuple(t.shape) for name, t in state.items()}["hidden.weight"] == (32, 16)

    whole = logical(soaprl, model, "-n", 2, "--steps", 5)
    assert whole["losses"][:3] == pytest.approx(found["losses"], rel=1e-12)
    resumed = logical(soaprl, model, "-n", 4, "--steps", 5, "-o", out, "--resume")
    assert resumed["first_step"] == 3
    assert resumed["losses"] == pytest.approx(whole["losses"][3:], rel=1e-12)


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one_to_the_bit(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    model, out = f"{model_file}:factory", tmp_path / "out"
    whole = logical(soaprl, model, "--steps", 6)["losses"]
    first = logical(soaprl, model, "--steps", 3, "-o", out, "--resume")["losses"]
    second = logical(soaprl, model, "--steps", 6, "-o", out, "--resume")["losses"]
    assert first + second == whole
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == whole


def test_dry_run_prints_what_each_rank_does(soaprl: Soaprl, model_file: Path) -> None:
    model = f"{model_file}:factory"
    done = soaprl("run", model, "-b", 12, "-n", 3, "-s", "model-parallel", "--dry-run")
    assert done.code == 0, done.err
    assert all(f"rank {rank}: holds" in done.out for rank in range(3))
    assert "exchange outputs of hidden" in done.out
    assert "checked:" in done.out
    found = soaprl("run", model, "-b", 12, "--dry-run", "--json").json
    assert [rank["steps"][-1] for rank in found["ranks"]] == ["update", "update"]


def test_a_strategy_file_names_its_model_and_cluster(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    model = f"{model_file}:factory"
    searched = soaprl(
        "search", model, "-c", "cpu-1x3", "-b", 12, "--method", "random", "--budget-evals", 5, "-o", file
    )
    assert searched.code == 0, searched.err
    done = soaprl("run", file, "--executor", "logical", "--steps", 2, "--check", "--json")
    assert done.code == 0, done.err
    assert done.json["num_ranks"] == 3
    assert done.json["check"]["agrees"]
    again = soaprl("run", file, "-s", "data-parallel")
    assert again.code == 2
    assert "is a strategy already" in again.err


def test_a_model_with_dropout_is_compared_with_the_same_random_numbers(soaprl: Soaprl) -> None:
    options = {"num_layers": 1, "width": 8, "num_heads": 2, "vocabulary": 7, "sequence": 4}
    words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    found = logical(soaprl, "gpt2", "-n", 2, "--steps", 2, "--check", *words)
    assert found["check"]["agrees"]
    assert found["check"]["against"] == "the captured graph, not split"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-n", 3, "-c", "cpu-1x2"), "expected a process for each of the 2 devices"),
        (("-s", "data-paralel"), "Did you mean 'data-parallel'"),
        (("--executor", "magic"), "unknown executor 'magic'"),
        (("--backend", "mpi"), "unknown backend 'mpi'"),
        (("--dtype", "float16"), "unknown dtype 'float16'"),
        (("--compress", "fp8"), "unknown gradient compression 'fp8'"),
        (("--check", "--compress", "int8"), "int8 rounds them at random"),
        (("--precision", "fp16"), "add --precision fp32 or --precision bf16"),
        (("--backend", "nccl"), "expected --backend gloo for --device cpu"),
        (("--resume",), "add --output DIR"),
        (("--check", "--resume", "-o", "x"), "leave one of them out"),
        (("--optimizer", "adm"), "Did you mean 'adam'?"),
        (("-b", 1), "batch smaller than the devices"),
        (("--trace", "no/such/folder/t.json"), "there is no folder"),
    ],
)
def test_wrong_options_get_one_clear_error(
    soaprl: Soaprl, model_file: Path, words: tuple[object, ...], message: str
) -> None:
    done = soaprl("run", f"{model_file}:factory", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("module", "labels", "message"),
    [
        (
            "torch.nn.Linear(4, 3).requires_grad_(False)",
            "randint(3",
            "no gradient with respect to any parameter",
        ),
        ("torch.nn.Linear(4, 3)", "randint(3, 9", "IndexError: expected numbers from 0 to 2, found"),
    ],
)
def test_what_cannot_be_trained_is_a_mistake_that_is_named(
    soaprl: Soaprl, tmp_path: Path, module: str, labels: str, message: str
) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.layer = {module}\n"
        "    def forward(self, x, y):\n"
        "        return torch.nn.functional.cross_entropy(self.layer(x), y)\n"
        "def factory(batch_size):\n"
        f"    return Net(), (torch.randn(batch_size, 4), torch.{labels}, (batch_size,)))\n"
    )
    done = soaprl("run", f"{path}:factory", "-b", 4, "-n", 1, "--executor", "logical")
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_saved_graph_has_nothing_to_train(soaprl: Soaprl, graph_file: Path) -> None:
    done = soaprl("run", graph_file)
    assert done.code == 2
    assert "no weights to train" in done.err


def test_an_earlier_run_is_neither_overwritten_nor_mixed_with_another(
    soaprl: Soaprl, model_file: Path, tmp_path: Path
) -> None:
    model, out = f"{model_file}:factory", tmp_path / "out"
    logical(soaprl, model, "--steps", 1, "-o", out)
    common = ("run", model, "-b", 12, "--executor", "logical", "--dtype", "float64", "-o", out)
    for words, message in (
        ((), "--resume goes on from step-00000001"),
        (("--resume", "--lr", 0.5), "learning_rate = 0.001, found 0.5"),
        (("--resume", "--steps", 1), "has 1 steps already"),
    ):
        done = soaprl(*common, *words)
        assert done.code == 2
        assert message in done.err


@pytest.mark.parametrize(
    "factory", ["dies_in_a_step", pytest.param("dies_while_saving", marks=pytest.mark.dist)]
)
def test_a_killed_rank_ends_the_run_with_its_name_and_the_run_can_go_on(
    soaprl: Soaprl, doomed_file: Path, factory: str
) -> None:
    model, out = f"{doomed_file}:{factory}", doomed_file.parent / "out"
    common = ("run", model, "-b", 4, "--dtype", "float64", "-o", out, "--save-every", 4)
    done = soaprl(*common, "-n", 2, "--steps", 100_000)
    assert done.code == 2
    assert "rank 1 was ended by SIGKILL at step" in done.err
    assert "--resume goes on from the last checkpoint" in done.err
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    steps = len(lines) + 2
    whole = logical_losses(soaprl, model, steps)
    resumed = soaprl(*common, "-n", 2, "--executor", "logical", "--steps", steps, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    first = resumed.json["first_step"]
    assert 4 <= first <= len(lines)
    assert first % 4 == 0
    assert resumed.json["losses"] == pytest.approx(whole[first:], rel=1e-9)


def logical_losses(soaprl: Soaprl, model: str, steps: int) -> list[float]:
    done = soaprl(
        *("run", model, "-b", 4, "--executor", "logical", "--dtype", "float64", "--json", "--steps", steps)
    )
    losses = done.json["losses"]
    assert isinstance(losses, list)
    return losses


def test_what_a_rank_raises_is_told_with_its_number(soaprl: Soaprl, doomed_file: Path) -> None:
    done = soaprl("run", f"{doomed_file}:raises", "-b", 4, "-n", 2)
    assert done.code == 2
    assert "rank 1 failed at the beginning: RuntimeError: no such luck" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("executor", ["logical", "distributed"])
def test_a_loss_that_is_no_number_ends_the_run_with_its_step(
    soaprl: Soaprl, tmp_path: Path, executor: str
) -> None:
    path = tmp_path / "dividing.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return (super().forward(x) / (x.sum() * 0)).sum()\n"
        "def factory(batch_size):\n"
        "    return Net(4, 2), (torch.randn(batch_size, 4),)\n"
    )
    out = tmp_path / "out"
    done = soaprl("run", f"{path}:factory", "-b", 4, "-n", 2, "--executor", executor, "-o", out)
    assert done.code == 2
    assert "at step 1 is" in done.err
    assert "expected a finite number" in done.err
    assert "There is no checkpoint to go on from yet" in done.err or executor == "logical"
    assert (out / "losses.jsonl").read_text() == ""


@pytest.mark.dist
def test_an_interrupt_ends_all_processes_and_says_where_to_go_on(doomed_file: Path) -> None:
    out = doomed_file.parent / "out"
    words = ["run", f"{doomed_file}:interrupts", "-b", "4", "-n", "2", "--steps", "100000"]
    command = [sys.executable, "-m", "soaprl", *words, "-o", str(out), "--save-every", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "--resume goes on from the last checkpoint" in done.stderr
    assert done.stderr.rstrip().endswith("soaprl: interrupted")
    for rank in (0, 1):
        pid = int((doomed_file.parent / f"pid-{rank}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
