"""Compiled kernels do not outlive the sources that they were made of."""

import os
from pathlib import Path

from soaprl.cost.kernels import drop_stale_kernels


def touch(path: Path, time_s: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time_s, time_s))
    return path


def test_what_was_compiled_before_any_source_changed_is_dropped(tmp_path: Path) -> None:
    touch(tmp_path / "cost" / "transfers.py", 200.0)
    touch(tmp_path / "simulator" / "schedule.py", 50.0)
    old = [touch(tmp_path / "simulator" / "__pycache__" / f"schedule.run-1.nb{c}", 100.0) for c in "ci"]
    new = touch(tmp_path / "cost" / "__pycache__" / "transfers.run-1.nbi", 300.0)
    bytecode = touch(tmp_path / "cost" / "__pycache__" / "transfers.pyc", 100.0)
    assert drop_stale_kernels(tmp_path) == len(old)
    assert not any(path.exists() for path in old)
    assert new.exists()
    assert bytecode.exists()
    assert drop_stale_kernels(tmp_path) == 0


def test_what_cannot_be_deleted_stays(tmp_path: Path) -> None:
    touch(tmp_path / "cost" / "transfers.py", 200.0)
    # A folder of that name cannot be unlinked, whoever runs the test; a broken link has no time of change.
    kept = tmp_path / "cost" / "__pycache__" / "transfers.run-1.nbc"
    kept.mkdir(parents=True)
    os.utime(kept, (100.0, 100.0))
    (tmp_path / "cost" / "gone.py").symlink_to(tmp_path / "nowhere")
    assert drop_stale_kernels(tmp_path) == 0
    assert kept.exists()
