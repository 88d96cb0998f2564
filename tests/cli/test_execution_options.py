"""Options that say how gradients are sent and what matrix units work in, and strategies that shard state."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Finished

Soaprl = Callable[..., Finished]


@pytest.mark.parametrize(("name", "ratio"), [("fp16", 2), ("int8", 4), ("ternary", 16)])
def test_simulate_sends_compressed_gradients(soaprl: Soaprl, graph_file: Path, name: str, ratio: int) -> None:
    whole = soaprl("simulate", graph_file, "-c", "p100-1x4", "--json").json
    small = soaprl("simulate", graph_file, "-c", "p100-1x4", "--gradient-compression", name, "--json").json
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


def test_tf32_is_faster_where_devices_have_it_and_the_same_elsewhere(
    soaprl: Soaprl, graph_file: Path
) -> None:
    def compute_s(cluster: str, dtype: str) -> float:
        found = soaprl("simulate", graph_file, "-c", cluster, "--compute-dtype", dtype, "--json").json
        return float(found["iteration_time_s"])

    assert compute_s("a100-1x2", "tf32") <= compute_s("a100-1x2", "float32")
    assert compute_s("p100-1x2", "tf32") == compute_s("p100-1x2", "float32")


def test_fsdp_is_found_written_and_simulated_again(soaprl: Soaprl, graph_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "fsdp.json"
    found = soaprl("search", graph_file, "-c", "p100-1x4", "--method", "fsdp", "--out", path, "--json").json
    assert found["strategy"]["sharding"] == "zero1"
    again = soaprl("simulate", graph_file, "-c", "p100-1x4", "--strategy", path, "--json").json
    assert again["iteration_time_s"] == found["iteration_time_s"]
    assert again["peak_memory_bytes"] < found["data_parallel"]["peak_memory_bytes"]
    exported = soaprl("export", path)
    assert "shard optimizer state (zero1)" in exported.out
