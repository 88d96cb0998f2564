"""Options that say how gradients are sent and what matrix units work in, and strategies that shard state."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import MODEL, Finished

Soaprl = Callable[..., Finished]


@pytest.mark.parametrize(("name", "ratio"), [("fp16", 2), ("int8", 4), ("ternary", 16)])
def test_simulate_sends_compressed_gradients(soaprl: Soaprl, graph_file: Path, name: str, ratio: int) -> None:
    whole = soaprl("simulate", graph_file, "-c", "p100-1x4", "--json").json
    small = soaprl("simulate", graph_file, "-c", "p100-1x4", "--compress", name, "--json").json
    assert (whole["gradient_compression"], small["gradient_compression"]) == ("none", name)
    assert small["synchronization_bytes"] == whole["synchronization_bytes"] // ratio


def test_search_and_compare_take_a_compression(soaprl: Soaprl, graph_file: Path) -> None:
    options = ("-c", "p100-1x2", "--gradient-compression", "int8", "--json")
    found = soaprl("search", graph_file, "--method", "random", "--budget-evals", 5, *options)
    assert found.json["gradient_compression"] == "int8"
    compared = soaprl("compare", graph_file, "--methods", "data-parallel,fsdp", *options)
    assert compared.json["gradient_compression"] == "int8"


@pytest.mark.parametrize("command", ["simulate", "search", "compare"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--gradient-compression", "fp8"), "unknown gradient compression 'fp8'"),
        (("--compute-dtype", "tf31"), "unknown compute dtype 'tf31'"),
        (("--gradient-compression", "int8", "--paper"), "the paper's assumptions know none"),
    ],
)
def test_unknown_formats_are_one_clear_error(
    soaprl: Soaprl, graph_file: Path, command: str, option: tuple[str, ...], message: str
) -> None:
    done = soaprl(command, graph_file, "-c", "p100-1x2", *option)
    assert done.code != 0
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_wrong_format_is_said_before_a_model_is_captured(soaprl: Soaprl, tmp_path: Path) -> None:
    # A model file that cannot even be imported: what is wrong with the options comes first.
    model = tmp_path / "model.py"
    model.write_text("raise RuntimeError('imported')\n")
    done = soaprl("compare", f"{model}:factory", "-c", "p100-1x2", "--precision", "bf17")
    assert done.code != 0
    assert "unknown compute dtype 'bf17'. Did you mean 'bfloat16'?" in " ".join(done.err.split())
    assert "imported" not in done.err


def test_tf32_is_faster_where_devices_have_it_and_the_same_elsewhere(
    soaprl: Soaprl, graph_file: Path
) -> None:
    def compute_s(cluster: str, dtype: str) -> float:
        found = soaprl("simulate", graph_file, "-c", cluster, "--compute-dtype", dtype, "--json").json
        return float(found["iteration_time_s"])

    assert compute_s("a100-1x2", "tf32") <= compute_s("a100-1x2", "float32")
    assert compute_s("p100-1x2", "tf32") == compute_s("p100-1x2", "float32")


@pytest.mark.parametrize(("short", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_precisions_have_short_names(soaprl: Soaprl, graph_file: Path, short: str, dtype: str) -> None:
    found = [
        soaprl("simulate", graph_file, "-c", "a100-1x2", "--precision", word, "--json").json
        for word in (short, dtype)
    ]
    assert found[0]["iteration_time_s"] == found[1]["iteration_time_s"]
    assert found[0]["cost_model"] == found[1]["cost_model"]
    assert found[0]["strategy"]["assumptions"]["compute_dtype"] == dtype


def test_a_strategy_file_keeps_what_it_was_found_for_and_options_override_it(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    options = ("--precision", "bf16", "--compress", "int8", "--optimizer", "sgd")
    on = (graph_file, "-c", "a100-1x2", "--json")
    found = soaprl("search", *on, "--method", "data-parallel", "--out", path, *options).json
    assumed = json.loads(path.read_text())["assumptions"]
    assert assumed == {
        "optimizer": "sgd",
        "compute_dtype": "bfloat16",
        "gradient_compression": "int8",
        "paper": False,
    }
    again = soaprl("simulate", *on, "--strategy", path).json
    assert again["iteration_time_s"] == found["iteration_time_s"]
    assert (again["cost_model"], again["gradient_compression"]) == (found["cost_model"], "int8")
    other = soaprl("simulate", *on, "--strategy", path, "--compress", "none", "--optimizer", "adam").json
    assert (other["gradient_compression"], other["peak_memory_bytes"] > again["peak_memory_bytes"]) == (
        "none",
        True,
    )


def test_a_file_of_a_search_with_the_papers_assumptions_says_so(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path, on = tmp_path / "found.json", (graph_file, "-c", "p100-1x2", "--json")
    found = soaprl("search", *on, "--method", "data-parallel", "--out", path, "--paper").json
    times_s = [
        soaprl("simulate", *on, "--strategy", path, *more).json["iteration_time_s"]
        for more in ((), ("--paper",), ("--no-paper",))
    ]
    assert times_s[0] == times_s[1] == found["iteration_time_s"] != times_s[2]


def test_what_the_runtime_does_not_have_is_refused_before_anything_starts(
    soaprl: Soaprl, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    path, model = tmp_path / "found.json", f"{tmp_path / 'model.py'}:factory"
    options = ("--method", "data-parallel", "--precision", "tf32")
    soaprl("search", model, "-c", "cpu-1x2", "--out", path, *options)
    done = soaprl("run", path)
    assert done.code == 2
    message = "expected arithmetic in float32 or bfloat16, found tf32, which can be simulated but not run"
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["search", "simulate", "compare"])
def test_a_sharding_is_asked_for_by_name(soaprl: Soaprl, graph_file: Path, command: str) -> None:
    method = {"search": "--method", "simulate": "--strategy", "compare": "--methods"}[command]
    on = (command, graph_file, "-c", "p100-1x4", method, "data-parallel", "--json")
    whole, pieces = soaprl(*on).json, soaprl(*on, "--sharding", "zero3").json
    if command == "compare":
        whole, pieces = whole["results"][0], pieces["results"][0]
    else:
        assert "sharding" not in whole["strategy"]
        assert pieces["strategy"]["sharding"] == "zero3"
    # Both layers are kept between their passes: gathered once, scattered once, as much as an all-reduce.
    assert pieces["communication_bytes"] == whole["communication_bytes"]
    assert pieces["peak_memory_bytes"] < whole["peak_memory_bytes"]


def test_a_strategy_file_is_simulated_with_another_sharding(
    soaprl: Soaprl, graph_file: Path, tmp_path: Path
) -> None:
    path, on = tmp_path / "fsdp.json", (graph_file, "-c", "p100-1x4", "--json")
    soaprl("search", *on, "--method", "fsdp", "--out", path)
    for asked, expected in (((), "zero3"), (("--sharding", "none"), "none")):
        found = soaprl("simulate", *on, "--strategy", path, *asked).json
        assert found["strategy"].get("sharding", "none") == expected


def test_fsdp_is_found_written_and_simulated_again(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "fsdp.json"
    found = soaprl("search", graph_file, "-c", "p100-1x4", "--method", "fsdp", "--out", path, "--json").json
    assert found["strategy"]["sharding"] == "zero3"
    again = soaprl("simulate", graph_file, "-c", "p100-1x4", "--strategy", path, "--json").json
    assert again["iteration_time_s"] == found["iteration_time_s"]
    assert again["peak_memory_bytes"] < found["data_parallel"]["peak_memory_bytes"]
    exported = soaprl("export", path)
    assert "shard parameters, gradients and optimizer state (zero3)" in " ".join(exported.out.split())
