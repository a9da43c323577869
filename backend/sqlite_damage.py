"""Telling a damaged SQLite file from one that is busy, full or read-only."""

import sqlite3


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is ill, so that waiting does not help."""
    # An error that the Python module raises by itself, such as of a closed connection, has no code.
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
