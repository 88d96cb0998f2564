"""Claims: which process measures what, so that none measures what another is measuring.

A claim is a lock on one byte of a file beside the profile, at an offset that follows from what is claimed.
The system gives it back when the process ends, however it ends: there is nothing to expire or to clean up.
Two claims at one offset only keep two processes from measuring at once.
"""

import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

from soaprl.errors import CostError

_OFFSETS = 2**40


class Claims:
    """The claims of this process on one profile; made once for a profile, and not for several threads.

    Args:
        profile: The file of the profile; the locks are on another beside it.
    """

    def __init__(self, profile: Path) -> None:
        self._path = profile.with_name(f"{profile.name}-claims")
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CostError(
                f"cannot write {str(self._path)!r}, by which processes agree on who measures what:"
                f" {error.strerror}. Put the profile into a folder that you may write to."
            ) from error

    def take(self, what: str) -> bool:
        """Claims `what`; False if another process has."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(what))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def give_back(self, what: str) -> None:
        """Ends a claim."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _offset(what))

    def close(self) -> None:
        """Ends all claims."""
        os.close(self._descriptor)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _offset(what: str) -> int:
    digest = hashlib.sha256(what.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _OFFSETS
