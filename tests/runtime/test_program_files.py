import json
import random
import re
from pathlib import Path

import pytest

from soaprl.errors import ProgramError
from soaprl.graph.capture import graph_from_factory
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.compile import compile_program
from soaprl.runtime.program import CompileOptions, Program
from soaprl.runtime.program_files import check_fits, load_program, save_program
from soaprl.runtime.program_text import program_text, totals_text
from tests.runtime.executing import random_strategy
from tests.runtime.models import own_cases
from tests.runtime.random_models import random_model


def compiled(name: str = "conv_block", num_ranks: int = 3) -> tuple[OperatorGraph, Program]:
    case = next(c for c in own_cases() if c.name == name)
    graph = graph_from_factory(case.factory, case.batch_size, name=name)
    strategy = random_strategy(graph, num_ranks, random.Random(5), case)
    options = CompileOptions(batch_norm="synchronized", clip_gradients=True)
    return graph, compile_program(graph, strategy, num_ranks=num_ranks, options=options)


@pytest.mark.parametrize("name", ["program.json", "program.json.gz"])
def test_a_program_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    graph, program = compiled()
    save_program(program, tmp_path / name)
    assert load_program(tmp_path / name) == program
    check_fits(load_program(tmp_path / name), graph)


def test_a_program_of_another_graph_is_refused() -> None:
    _, program = compiled()
    other = random_model(3)
    with pytest.raises(ProgramError, match="compiled for another version of 'conv_block'"):
        check_fits(program, graph_from_factory(other.factory, 4, name="other"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "soaprl-strategy"}, "expected a program file"),
        ({"version": 99}, "version 1, found 99"),
        ({"model": 3}, "at model"),
        ({"ranks": [{"rank": 0}]}, "at ranks.0.parameters"),
        ({"surprise": 1}, "at surprise"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "program.json"
    save_program(compiled()[1], path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ProgramError, match=message):
        load_program(path)


@pytest.mark.parametrize("content", [b"\x1f\x8bnot gzip", b"{", b"[]", b"\xff"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "program.json").write_bytes(content)
    with pytest.raises(ProgramError, match="expected a program file"):
        load_program(tmp_path / "program.json")


def test_the_text_lists_every_step_and_the_bytes_of_every_route() -> None:
    graph, program = compiled()
    text = program_text(program, graph)
    listed = text.removesuffix(totals_text(program, graph) + "\n")
    steps = sum(len(rank.steps) for rank in program.ranks)
    assert len(re.findall(r"^ +\d+  \S", listed, re.MULTILINE)) == steps
    sent = {(r.rank, m.peer) for r in program.ranks for s in r.steps if s.kind == "exchange" for m in s.sends}
    for source, target in sent:
        assert f"  {source} -> {target}: " in text
