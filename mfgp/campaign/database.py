"""Opening a campaign's database, to work on it or only to read it, and what the errors of SQLite mean to a user."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mfgp.errors import DataError

_NONE = ("file is not a database", "no such table: meta")
_KEPT = "what it holds is complete, and once that is mended the same command goes on"
_READING = "`campaign status`, `export -o ELSEWHERE` and `report -o ELSEWHERE` only read it"
_WAYS = {  # what an OperationalError says: the way out
    "disk is full": f"make room; {_KEPT}.",
    "disk I/O error": f"the disk is full, or fails; make room and look after it; {_KEPT}.",
    "readonly database": f"make it and its directory writable; {_READING}.",
    "unable to open": f"make it and its directory readable and writable; {_READING}.",
    "is locked": "another process writes to it; try again.",
}


class Cursor(sqlite3.Cursor):
    """Raises DataError, see database_errors."""

    connection: Connection

    def execute(self, *args: Any) -> Cursor:
        with database_errors(self.connection.path):
            super().execute(*args)
        return self

    def executescript(self, script: str) -> Cursor:
        with database_errors(self.connection.path):
            super().executescript(script)
        return self

    def fetchone(self) -> Any:
        with database_errors(self.connection.path):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with database_errors(self.connection.path):
            return super().fetchall()

    def __next__(self) -> Any:
        with database_errors(self.connection.path):
            row = super().fetchone()
        if row is None:
            raise StopIteration
        return row


class Connection(sqlite3.Connection):
    """Of a campaign's database: whatever is asked through it raises DataError, see database_errors. So no error of another
    database, of the code around a campaign, is taken for one of this."""

    path: Path

    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, *args: Any) -> Cursor:
        return self.cursor().execute(*args)

    def executescript(self, script: str) -> Cursor:
        return self.cursor().executescript(script)


def _connect(path: Path, name: str | Path, *, uri: bool = False) -> Connection:
    """name: what SQLite opens; path: the database that errors name."""
    db = sqlite3.connect(name, uri=uri, isolation_level=None, timeout=30.0, factory=Connection)
    db.path = path
    return db


def connect(path: Path) -> Connection:
    """To write: a write-ahead log, synced at every commit. Raises DataError for a file that cannot be used so."""
    with database_errors(path):
        db = _connect(path, path)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> Connection:
    """To read only, also from a directory that cannot be written to and on a full disk. Raises DataError.

    Readers and the writer of a write-ahead log share a file beside it (`-shm`), which is made where it is missing and can be
    made. Where it cannot, the database is read as it is, with its log (of a process that was killed) as a copy in memory; a
    process that may write there, and does so meanwhile, is not noticed.
    """
    uri = path.absolute().as_uri()
    with database_errors(path):
        try:
            return _reading(path, f"{uri}?mode=rw")  # read-only by itself where the file is
        except sqlite3.OperationalError as error:
            if "is locked" in str(error):
                raise
        log = path.with_name(f"{path.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return _reading(path, f"{uri}?immutable=1")
        with TemporaryDirectory() as folder:
            for file in (path, log):
                shutil.copyfile(file, Path(folder) / file.name)
            with closing(sqlite3.connect(Path(folder) / path.name)) as copy:
                memory = _connect(path, ":memory:")
                copy.backup(memory)
        return memory


def _reading(path: Path, uri: str) -> Connection:
    """Raises the errors of SQLite."""
    db = _connect(path, uri, uri=True)
    try:
        plain = db.cursor(sqlite3.Cursor)
        plain.execute("PRAGMA query_only = ON")
        plain.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log, too
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """DataError for what SQLite says of a database that is none or damaged, of a full disk, a lock, or files that are
    read-only; other errors are mistakes of ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if text in _NONE:
            raise DataError(f"{path} is not a campaign's database ({text}); restore it from a copy.") from None
        if "malformed" in text:
            raise DataError(f"{path} is damaged ({text}); restore it from a copy.") from None
        for sign, way in _WAYS.items():
            if isinstance(error, sqlite3.OperationalError) and sign in text:
                raise DataError(f"{path}: {text}; {way}") from error
        raise
