"""Checkpoints as folders: ``step-00000020`` is whole, and ``.step-00000020.partial`` is being written.

A checkpoint is written under its second name and then renamed, so that one under its first is whole. What
copying a folder may have lost is seen by the sizes of its files, which ``training.json`` lists.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.errors import ExecutionError, OutputError

FORMAT = "soaprl-checkpoint"
VERSION = 1
TRAINING = "training.json"
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-\d{8,}\.partial")


def checkpoint_path(folder: Path, num_iterations: int) -> Path:
    """Where the checkpoint after so many iterations is, once it is whole."""
    return folder / f"step-{num_iterations:08d}"


def partial_path(folder: Path, num_iterations: int) -> Path:
    """Where it is while it is written."""
    return folder / f".step-{num_iterations:08d}.partial"


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The whole checkpoint of the most iterations in `folder`; None without any."""
    return next(iter(whole_checkpoints(folder)), None)


def whole_checkpoints(folder: str | Path) -> list[Path]:
    """The whole checkpoints in `folder`, the latest first."""
    if not Path(folder).is_dir():
        return []
    named = [(match, path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name))]
    ordered = sorted(named, key=lambda pair: int(pair[0][1]), reverse=True)
    return [path for _, path in ordered if is_whole(path)]


def is_whole(path: Path) -> bool:
    """Whether all files of the checkpoint at `path` are there in full."""
    try:
        files = read_training(path)["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (ExecutionError, OSError):
        return False


def read_training(path: Path) -> dict[str, Any]:
    """What the checkpoint at `path` says of the training that it belongs to.

    Raises:
        ExecutionError: It is no checkpoint, or of another version.
    """
    try:
        content = json.loads((path / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExecutionError(f"{path}: expected a checkpoint with {TRAINING}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ExecutionError(f'{path / TRAINING}: expected JSON with "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise ExecutionError(
            f"{path}: expected checkpoint version {VERSION}, found {content.get('version')!r}: it was written"
            " by another version of soaprl"
        )
    return content


def begin(folder: Path, num_iterations: int) -> Path:
    """The path to write a checkpoint to; what earlier attempts left is removed.

    Raises:
        OutputError: The folder cannot be made or written.
    """
    make_folder(folder)
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    return partial_path(folder, num_iterations)


def complete(partial: Path, target: Path, training: dict[str, Any], written: Iterable[str]) -> None:
    """Gives a checkpoint its name.

    Args:
        partial: Where all ranks have written it.
        target: Its name.
        training: What ``training.json`` says besides the format and the files.
        written: The files that the ranks say they wrote.

    Raises:
        OutputError: A file is not there, or the folder cannot be renamed.
    """
    missing = [name for name in written if not (partial / name).is_file()]
    if missing:
        raise OutputError(
            f"cannot complete checkpoint {target}: {missing[0]!r}, which another rank wrote, is not in"
            f" {partial}: checkpoints need a folder that all ranks share"
        )
    files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    content = {"format": FORMAT, "version": VERSION, **training, "files": files}
    write_text_atomic(partial / TRAINING, json.dumps(content, indent=1))
    try:
        if target.exists():
            # Only one that is not whole: `save_checkpoint` does not write over a whole one.
            shutil.rmtree(target)
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise OutputError(f"cannot complete checkpoint {target}: {error.strerror or error}") from error


def keep_latest(folder: Path, num_kept: int) -> None:
    """Removes all but the latest whole checkpoints; those that are not whole are left for people to see."""
    for path in whole_checkpoints(folder)[num_kept:]:
        # First its name, so that what is being removed is never taken for whole.
        gone = path.with_name(f".{path.name}.partial")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Lets a rename in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
