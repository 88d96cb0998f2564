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
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder. Name a file in it.")
    # In the same folder, because a rename is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        _write_and_rename(content, temporary, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror or error}. "
            "Name a file in a folder that exists and that you may write to."
        ) from error


def _write_and_rename(content: bytes, temporary: Path, target: Path) -> None:
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
