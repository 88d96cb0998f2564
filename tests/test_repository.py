"""Facts about the repository that no tool checks."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import soaprl

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "soaprl", ROOT / "envs", ROOT / "agents")
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
SUBCOMMANDS = {
    "models",
    "clusters",
    "methods",
    "simulate",
    "search",
    "compare",
    "profile",
    "validate",
    "export",
    "demo",
}
MAX_FILE_LINES = 600
MAX_BODY_LINES = 60
# Compiled loops keep their state in local variables, which a call would have to hand over.
MAX_COMPILED_BODY_LINES = 100


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without the docstring."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    return (function.end_lineno or 0) - function.body[documented].lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_and_its_functions_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    limit = MAX_COMPILED_BODY_LINES if path.parent.name == "simulator" else MAX_BODY_LINES
    long = [function.name for function in functions(path) if body_lines(function) > limit]
    assert not long, f"longer than {limit} lines: {long}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_are_absolute(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 0]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert not unfinished.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((ROOT / "soaprl" / "cli").glob("*.py")), ids=relative)
def test_a_subcommand_is_short_because_the_library_does_the_work(path: Path) -> None:
    # A third of a subcommand is the list of its options.
    limit = 100 if path.stem in SUBCOMMANDS else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_every_dependency_is_pinned_and_none_brings_cuda() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    pinned = {name.lower().replace("_", "-") for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    needed = {re.split(r"[<>=]", requirement)[0].lower() for requirement in required}
    assert needed <= pinned
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{soaprl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_lint_exemption_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    codes = [*lint["ignore"], *(code for codes in lint["per-file-ignores"].values() for code in codes)]
    unexplained = [code for code in codes if not re.search(rf'"{code}",? +#', text)]
    assert not unexplained


def test_warnings_are_errors() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    assert options["ini_options"]["filterwarnings"][0] == "error"
