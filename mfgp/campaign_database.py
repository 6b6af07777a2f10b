"""Opening a campaign's database, to work on it or only to read it, and what the errors of SQLite mean to a user."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mfgp.errors import DataError

_KEPT = "what it holds is complete, and once that is mended the same command goes on"
_READING = "`campaign status`, `export -o ELSEWHERE` and `report -o ELSEWHERE` only read it"
_WAYS = {  # what an OperationalError says: the way out
    "disk is full": f"make room; {_KEPT}.",
    "disk I/O error": f"the disk is full, or fails; make room and look after it; {_KEPT}.",
    "readonly database": f"make it and its directory writable; {_READING}.",
    "unable to open": f"make it and its directory readable and writable; {_READING}.",
    "is locked": "another process writes to it; try again.",
}


def connect(path: Path) -> sqlite3.Connection:
    """To write: a write-ahead log, synced at every commit. Raises DataError for a file that cannot be used so."""
    db = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    try:
        with database_errors(path):
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """To read only, also from a directory that cannot be written to and on a full disk. Raises DataError.

    Readers and the writer of a write-ahead log share a file beside it. Where that cannot be made nobody writes, either: the
    database is read as it is, with its log (of a process that was killed) as a copy in memory.
    """
    uri = path.absolute().as_uri()
    with database_errors(path):
        try:
            return _reading(f"{uri}?mode=rw")  # read-only by itself where the file is
        except sqlite3.OperationalError as error:
            if "is locked" in str(error):
                raise
        log = path.with_name(f"{path.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return _reading(f"{uri}?immutable=1")
        with TemporaryDirectory() as folder:
            for file in (path, log):
                shutil.copyfile(file, Path(folder) / file.name)
            with closing(sqlite3.connect(Path(folder) / path.name)) as copy:
                memory = sqlite3.connect(":memory:", isolation_level=None)
                copy.backup(memory)
        return memory


def _reading(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log, too
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
        if type(error) is sqlite3.DatabaseError or text.startswith("no such"):
            raise DataError(f"{path} is not a campaign's database ({text}); restore it from a copy.") from None
        for sign, way in _WAYS.items():
            if isinstance(error, sqlite3.OperationalError) and sign in text:
                raise DataError(f"{path}: {text}; {way}") from error
        raise
