from pathlib import Path

import pytest

from soaprl.atomic import check_writable, write_bytes_atomic, write_text_atomic
from soaprl.errors import OutputError


def test_text_arrives_whole_and_alone(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a.json", "größer\n")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "größer\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old and longer")
    write_bytes_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_file_gets_the_permissions_of_a_plain_open(tmp_path: Path) -> None:
    (tmp_path / "plain").open("w").close()
    write_text_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["missing/a.json", ".", "file/a.json"])
def test_a_path_that_cannot_be_written_is_a_users_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="cannot write"):
        write_text_atomic(tmp_path / name, "text")
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(OutputError, match="device or a pipe"):
        write_text_atomic("/dev/null", "text")
    assert Path("/dev/null").is_char_device()


def test_checking_a_good_path_writes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
