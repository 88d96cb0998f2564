"""The profile: a SQLite file of what was measured, which several processes read and write at once.

Every measurement is committed by itself, in write-ahead mode: whatever ends the process, at any moment, what
was measured is there. Every row carries a checksum, so that a damaged file is an error and never a time.

Tables: ``settings`` (on what was measured), ``measurements`` (see `Measured`), one row for each setting,
family and extents, and, once something is measured again, ``rounds``: the second time and later.
"""

import json
import os
import sqlite3
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from soaprl.cost.profiled.measurement import Extents, Measured, Measurement, Setting, together
from soaprl.errors import CostError

# "SOAP" in ASCII: what SQLite files of this program are known by.
APPLICATION_ID = 0x534F4150
VERSION = 1
_BUSY_S = 60.0
_RETRY_S = 0.005

_TABLES = """
CREATE TABLE settings (
    id INTEGER PRIMARY KEY,
    device_type TEXT NOT NULL,
    device_name TEXT NOT NULL,
    threads INTEGER NOT NULL,
    torch_version TEXT NOT NULL,
    compute_dtype TEXT NOT NULL,
    made_at TEXT NOT NULL,
    UNIQUE (device_type, device_name, threads, torch_version, compute_dtype)
);
CREATE TABLE measurements (
    setting INTEGER NOT NULL REFERENCES settings (id),
    family TEXT NOT NULL,
    extents TEXT NOT NULL,
    kind TEXT NOT NULL,
    forward_s REAL,
    backward_s REAL,
    spread REAL,
    repeats INTEGER,
    reason TEXT NOT NULL,
    measured_at TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (setting, family, extents)
) WITHOUT ROWID;
"""
_ROUNDS = """
CREATE TABLE IF NOT EXISTS rounds (
    setting INTEGER NOT NULL REFERENCES settings (id),
    family TEXT NOT NULL,
    extents TEXT NOT NULL,
    round INTEGER NOT NULL,
    forward_s REAL NOT NULL,
    backward_s REAL NOT NULL,
    spread REAL NOT NULL,
    repeats INTEGER NOT NULL,
    measured_at TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (setting, family, extents, round)
) WITHOUT ROWID
"""
_OF_SHARD = "setting = ? AND family = ? AND extents = ?"
_AGAIN = "family, extents, round, forward_s, backward_s, spread, repeats, checksum"
_COLUMNS = "family, extents, kind, forward_s, backward_s, spread, repeats, reason, checksum"
_Row = tuple[str, str, str, float | None, float | None, float | None, int | None, str, int]
_Round = tuple[str, str, int, float, float, float, int, int]


class Profile:
    """A profile that is open.

    Args:
        path: The file.
        create: Whether to begin one where there is none.

    Raises:
        CostError: There is no such file, or it is none of ours, damaged, or of another version.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise CostError(
                f"there is no profile {str(path)!r}. Make one with: soaprl profile MODEL --cluster C --out"
                f" {path}"
            )
        # SQLite cannot share a file in a folder that it may not write to; there nothing changes it.
        lasting = self.path.is_file() and not os.access(self.path.parent, os.W_OK)
        address = f"{self.path.absolute().as_uri()}{'?immutable=1' if lasting else ''}"
        with self._errors():
            self._connection = sqlite3.connect(address, timeout=_BUSY_S, isolation_level=None, uri=True)
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        run = self._connection.execute
        (application,) = run("PRAGMA application_id").fetchone()
        if application == 0 and self._is_empty():
            self._begin()
            (application,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise CostError(
                f"expected a profile of soaprl in {str(self.path)!r}, found a database of another program."
                " Name another file."
            )
        if version != VERSION:
            age = "an older" if version < VERSION else "a newer"
            raise CostError(
                f"expected a profile of version {VERSION} in {str(self.path)!r}, found version {version},"
                f" made by {age} soaprl: measure into a new file, or use the soaprl that made it."
            )
        (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._damaged(verdict)

    def _is_empty(self) -> bool:
        return not self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _begin(self) -> None:
        """Makes the tables, unless another process is faster."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        if self._is_empty():
            for statement in _TABLES.split(";"):
                run(statement)
            run(f"PRAGMA application_id = {APPLICATION_ID}")
            run(f"PRAGMA user_version = {VERSION}")
        run("COMMIT")
        # Changing the mode needs the file for itself for a moment; SQLite does not wait for that.
        deadline_s = time.monotonic() + _BUSY_S
        while not self._is_write_ahead() and time.monotonic() < deadline_s:
            time.sleep(_RETRY_S)

    def _is_write_ahead(self) -> bool:
        try:
            (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError:
            return False
        return bool(mode == "wal")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CostError(f"cannot use the profile {str(self.path)!r}: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> CostError:
        return CostError(
            f"expected a profile of soaprl in {str(self.path)!r}, found a file that is damaged or none of"
            f" SQLite's ({what}). Measure into a new file."
        )

    def settings(self) -> list[Setting]:
        """All settings, in the order in which they came."""
        columns = "device_type, device_name, threads, torch_version, compute_dtype"
        with self._errors():
            rows = self._connection.execute(f"SELECT {columns} FROM settings ORDER BY id").fetchall()
        return [
            Setting(
                device_type=kind,
                device_name=name,
                threads=threads,
                torch_version=version,
                compute_dtype=dtype,
            )
            for kind, name, threads, version, dtype in rows
        ]

    def count(self, setting: Setting) -> int:
        """How many rows a setting has."""
        with self._errors():
            row = self._connection.execute(
                "SELECT count(*) FROM measurements WHERE setting = ?", (self._id(setting),)
            ).fetchone()
        return int(row[0])

    def all(self, setting: Setting) -> list[Measured]:
        """Everything that was measured under a setting."""
        number = self._id(setting)
        with self._errors():
            rows: list[_Row] = self._connection.execute(
                f"SELECT {_COLUMNS} FROM measurements WHERE setting = ?", (number,)
            ).fetchall()
        again = defaultdict(list)
        for later in self._later("setting = ?", number):
            again[later[0], later[1]].append(later)
        return [self._parsed(row, again[row[0], row[1]]) for row in rows]

    def get(self, setting: Setting, family: str, extents: Extents) -> Measured | None:
        """One row, or None."""
        values = self._id(setting), family, json.dumps(extents)
        with self._errors():
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM measurements WHERE {_OF_SHARD}", values
            ).fetchone()
        return None if row is None else self._parsed(row, self._later(_OF_SHARD, *values))

    def _later(self, condition: str, *values: object) -> list[_Round]:
        """What was measured in later rounds."""
        with self._errors():
            run = self._connection.execute
            if not run("SELECT count(*) FROM sqlite_master WHERE name = 'rounds'").fetchone()[0]:
                return []
            return run(f"SELECT {_AGAIN} FROM rounds WHERE {condition}", values).fetchall()

    def put_again(self, setting: Setting, family: str, extents: Extents, times: Measurement) -> None:
        """Keeps what came of measuring once more what has a row: it is on disk when this returns.

        Who measures it has claimed it (`soaprl.cost.profiled.claims`), so that nobody else counts on.
        """
        number, words = self._id(setting), json.dumps(extents)
        numbers = times.forward_s, times.backward_s, times.spread, times.repeats
        with self._errors():
            run = self._connection.execute
            run(_ROUNDS)
            key = number, family, words
            (count,) = run(f"SELECT count(*) FROM rounds WHERE {_OF_SHARD}", key).fetchone()
            values = (family, words, count + 1, *numbers)
            run(
                f"INSERT INTO rounds (setting, measured_at, {_AGAIN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (number, _now(), *values, _checksum(values)),
            )

    def put(self, setting: Setting, measured: Measured) -> None:
        """Keeps a row, once and for all: it is on disk when this returns; a second of its kind is dropped."""
        times = measured.times
        numbers = (None,) * 4 if times is None else (
            times.forward_s, times.backward_s, times.spread, times.repeats
        )  # fmt: skip
        values = (measured.family, json.dumps(measured.extents), measured.kind, *numbers, measured.reason)
        with self._errors():
            self._connection.execute(
                f"INSERT OR IGNORE INTO measurements (setting, measured_at, {_COLUMNS})"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._ensured(setting), _now(), *values, _checksum(values)),
            )

    def _parsed(self, row: _Row, later: Sequence[_Round]) -> Measured:
        for *values, checksum in (row, *later):
            if checksum != _checksum(tuple(values)):
                raise self._damaged(f"the checksum of {row[2]} {row[1]} is wrong")
        family, extents, kind, forward_s, backward_s, spread, repeats, reason, _ = row
        times = None
        if forward_s is not None and backward_s is not None:
            times = Measurement(
                forward_s=forward_s, backward_s=backward_s, spread=spread or 0.0, repeats=repeats or 0
            )
        found = Measured(
            family=family, extents=tuple(json.loads(extents)), kind=kind, times=times, reason=reason
        )
        if times is None or not later:
            return found
        again = [
            Measurement(forward_s=forward, backward_s=backward, spread=spread, repeats=count)
            for _, _, _, forward, backward, spread, count, _ in later
        ]
        return replace(found, times=together([times, *again]), rounds=1 + len(again))

    def _id(self, setting: Setting) -> int:
        columns = "device_type, device_name, threads, torch_version, compute_dtype"
        with self._errors():
            row = self._connection.execute(
                f"SELECT id FROM settings WHERE ({columns}) = (?, ?, ?, ?, ?)", _fields(setting)
            ).fetchone()
        return -1 if row is None else int(row[0])

    def _ensured(self, setting: Setting) -> int:
        found = self._id(setting)
        if found < 0:
            self._connection.execute(
                "INSERT OR IGNORE INTO settings"
                " (device_type, device_name, threads, torch_version, compute_dtype, made_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*_fields(setting), _now()),
            )
            found = self._id(setting)
        return found

    def close(self) -> None:
        """Closes the file; what was put into it stays."""
        self._connection.close()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fields(setting: Setting) -> tuple[str, str, int, str, str]:
    return (
        setting.device_type,
        setting.device_name,
        setting.threads,
        setting.torch_version,
        setting.compute_dtype,
    )


def _checksum(values: tuple[object, ...]) -> int:
    return zlib.crc32(repr(values).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
