import json
import subprocess
import sys

import pytest

from soaprl import __version__
from soaprl.cli import run


@pytest.mark.parametrize(
    ("arguments", "key", "name"),
    [(["models"], "models", "nmt"), (["clusters"], "clusters", "p100"), (["methods"], "methods", "mcmc")],
)
def test_a_listing_is_a_table_or_one_json_object(
    capsys: pytest.CaptureFixture[str], arguments: list[str], key: str, name: str
) -> None:
    assert run(arguments) == 0
    assert name in capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert name in {row["name"] for row in json.loads(captured.out)[key]}
    assert captured.err == ""


@pytest.mark.parametrize(
    "arguments",
    [["models"], ["clusters"], ["clusters", "p100-1x4"], ["methods"], ["--help"], ["search", "--help"]],
)
def test_a_listing_imports_no_torch(arguments: list[str]) -> None:
    program = (
        f"import sys, soaprl.cli; code = soaprl.cli.run({arguments!r}); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_importing_the_command_line_imports_neither_torch_nor_numba() -> None:
    program = "import sys, soaprl.cli; print(sorted({'torch', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"soaprl {__version__}\n"


def test_a_cluster_is_shown_with_where_its_numbers_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["clusters", "p100-2x4"]) == 0
    output = capsys.readouterr().out
    assert "8 devices in 2 nodes" in output
    assert "datasheet" in output


def test_a_cluster_written_to_a_file_is_the_same_cluster(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("clusters") / "mine.yaml"
    assert run(["clusters", "a100-2x2", "--out", str(path), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert run(["clusters", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == written["fingerprint"]
