"""Cache of loss curves on disk, for later runs with the same model and text.

A key is the name of a treatment, followed by the names of the projections of a scope.
"""

import errno
import sqlite3
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from basis_sharing.treatments.base import CurveKey, Floats

_FILE = "curves.sqlite"
_SECONDS = 1.0
_PATIENCE = 60.0


class StoredCurves(MutableMapping[CurveKey, Floats]):
    """Loss curves by treatment and scope in an SQLite database; new ones are written about once a second."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._waiting: dict[str, bytes] = {}
        self._written = time.monotonic()

    def __getitem__(self, key: CurveKey) -> Floats:
        name = _name(key)
        if name in self._waiting:
            return np.frombuffer(self._waiting[name], "<f8")
        row = self._database.execute("SELECT losses FROM curves WHERE scope = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(key)
        return np.frombuffer(row[0], "<f8")

    def __setitem__(self, key: CurveKey, losses: Floats) -> None:
        self._waiting[_name(key)] = losses.astype("<f8").tobytes()
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def __delitem__(self, key: CurveKey) -> None:
        self.write()
        if not self._database.execute("DELETE FROM curves WHERE scope = ?", (_name(key),)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[CurveKey]:
        self.write()
        for (key,) in self._database.execute("SELECT scope FROM curves").fetchall():
            yield tuple(key.split("\n"))

    def __len__(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM curves").fetchone()[0]
        stored = "SELECT 1 FROM curves WHERE scope = ?"
        return count + sum(self._database.execute(stored, (key,)).fetchone() is None for key in self._waiting)

    def write(self) -> None:
        """Write the curves that are not in the database yet."""
        if self._waiting:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO curves VALUES (?, ?)", self._waiting.items())
        self._waiting.clear()
        self._written = time.monotonic()


@contextmanager
def stored_curves(folder: Path) -> Iterator[StoredCurves]:
    """Open the curves in a folder; a damaged file is replaced by an empty one.

    Raises:
        OSError: The disk is full or fails, or another run keeps the file locked.
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
    """Return a connection to the database, which is created if needed.

    Raises:
        sqlite3.DatabaseError: The file is damaged, or (OperationalError) the disk fails or the file is locked.
    """
    database = sqlite3.connect(file, timeout=_PATIENCE)
    try:
        (status,) = database.execute("PRAGMA integrity_check").fetchone()
        if status != "ok":
            raise sqlite3.DatabaseError(status)
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS curves (scope TEXT PRIMARY KEY, losses BLOB NOT NULL)")
    except BaseException:
        database.close()
        raise
    return database


def _name(key: CurveKey) -> str:
    return "\n".join(key)
