"""Loss curves on disk, for a later run with the same model and text."""

import errno
import sqlite3
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from basis_sharing.planning.allocation import Floats

_FILE = "curves.sqlite"
_SECONDS = 1.0
_PATIENCE = 60.0


class StoredCurves(MutableMapping[tuple[str, ...], Floats]):
    """Loss curves by the names of a group's members; those that were set are written about once a second."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._waiting: dict[str, bytes] = {}
        self._written = time.monotonic()

    def __getitem__(self, names: tuple[str, ...]) -> Floats:
        key = _key(names)
        if key in self._waiting:
            return np.frombuffer(self._waiting[key], "<f8")
        row = self._database.execute("SELECT losses FROM curves WHERE members = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(names)
        return np.frombuffer(row[0], "<f8")

    def __setitem__(self, names: tuple[str, ...], losses: Floats) -> None:
        self._waiting[_key(names)] = losses.astype("<f8").tobytes()
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def __delitem__(self, names: tuple[str, ...]) -> None:
        self.write()
        if not self._database.execute("DELETE FROM curves WHERE members = ?", (_key(names),)).rowcount:
            raise KeyError(names)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        self.write()
        for (key,) in self._database.execute("SELECT members FROM curves").fetchall():
            yield tuple(key.split("\n"))

    def __len__(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM curves").fetchone()[0]
        stored = "SELECT 1 FROM curves WHERE members = ?"
        return count + sum(self._database.execute(stored, (key,)).fetchone() is None for key in self._waiting)

    def write(self) -> None:
        """Write what is not written yet."""
        if self._waiting:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO curves VALUES (?, ?)", self._waiting.items())
        self._waiting.clear()
        self._written = time.monotonic()


@contextmanager
def stored_curves(folder: Path) -> Iterator[StoredCurves]:
    """Open the curves in a folder; a damaged file is begun anew, what was in it is measured again.

    Raises:
        OSError: The disk is full or fails, or another run does not let go of the file.
    """
    file = folder / _FILE
    try:
        try:
            database = _open(file)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            file.unlink()
            database = _open(file)
        try:
            curves = StoredCurves(database)
            try:
                yield curves
            finally:
                curves.write()
        finally:
            database.close()
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, str(error), str(file)) from error


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=_PATIENCE)
    try:
        (found,) = database.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS curves (members TEXT PRIMARY KEY, losses BLOB NOT NULL)")
    except BaseException:
        database.close()
        raise
    return database


def _key(names: tuple[str, ...]) -> str:
    return "\n".join(names)
