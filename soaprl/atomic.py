"""Files that are either wholly written or untouched."""

import os
import secrets
from pathlib import Path

from soaprl.errors import OutputError


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, so that readers see the old content or all of the new one.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, so that readers see the old content or all of the new one.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    check_writable(path)
    target = Path(path)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        _write_and_rename(content, temporary, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror or error}. "
            "Name a file in a folder that exists and that you may write to."
        ) from error


def check_writable(path: str | Path) -> None:
    """Raise `OutputError` if `path` cannot be written: to be called before long work, and changes nothing."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder. Name a file in it.")
    if target.exists() and not target.is_file():
        # Renaming a file over it would put an end to a device or pipe.
        raise OutputError(f"cannot write {str(path)!r}: it is a device or a pipe. Name a file.")
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {str(path)!r}: there is no folder {str(target.parent)!r}. Make it first."
        )
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write {str(path)!r}: you may not write to {str(target.parent)!r}.")


def make_folder(path: str | Path) -> None:
    """Make the folder `path` and those above it where they do not exist.

    Raises:
        OutputError: It cannot be made, or is a file.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {str(path)!r}: {error.strerror or error}. Name another folder."
        ) from error
    check_writable(Path(path) / "file")


def _write_and_rename(content: bytes, temporary: Path, target: Path) -> None:
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
