"""Features and maps on disk, by content.

One SQLite file per trunk (`<folder>/<trunk id>/features.sqlite`): a crop's key is the
SHA-256 of its pixels and mode, so a changed picture, mode, weight or transform never reads
a stale record. SQLite gives crash safety, many readers beside one writer, and an opening
that reads no record; each record carries its own checksum, and a damaged one counts as
missing. A second file, `pictures.sqlite`, remembers which content a picture (address, size,
date) had, so that known pictures need not be read again.
"""

import hashlib
import logging
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from backend.compact_maps import CompactMaps
from backend.features import Extracted, Trunk
from backend.sqlite_damage import is_damage

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

_log = logging.getLogger(__name__)
_LOCK_TIMEOUT_S = 60.0
_KEYS_PER_QUERY = 500  # SQLite's default limit of parameters is 999 in old builds

# AUTOINCREMENT: ids only grow, so the lowest are the oldest. Another form of maps needs another
# name of their table; activations, which they replaced, are of caches that release 0.1.0 left.
_RECORDS = """
CREATE TABLE IF NOT EXISTS features (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB UNIQUE NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS maps (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB UNIQUE NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL);
DROP TABLE IF EXISTS activations;
"""
_PICTURES = "CREATE TABLE IF NOT EXISTS pictures (identity BLOB PRIMARY KEY, key BLOB NOT NULL);"


def content_key(pixels: UInt8Array, *, mode: str) -> str:
    """Key of one crop: SHA-256 of its shape, pixels and mode, 64 hex digits.

    Args:
        pixels: uint8 (S, S, 3).
        mode: what the trunk looks at.
    """
    digest = hashlib.sha256(f"{mode} {pixels.shape} {pixels.dtype}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class FeatureCache:
    """Records of one trunk below a folder; safe to share between threads and processes.

    Args:
        folder: root of all trunks' caches; made when missing.
        trunk: whose records these are.
        max_bytes: size limit of the file; the oldest records go first, maps (which only
            Grad-CAM needs) before features. Records of other trunks go where all exceed it.
    """

    def __init__(self, folder: Path, trunk: Trunk, *, max_bytes: int) -> None:
        self._folder = folder
        self._own = folder / trunk.trunk_id
        self._records = _Database(self._own / "features.sqlite", schema=_RECORDS)
        self._pictures = _Database(folder / "pictures.sqlite", schema=_PICTURES)
        self._max_bytes = max_bytes
        self._feature_dim = trunk.feature_dim
        self._feature_bytes = 2 * trunk.feature_dim
        self._map_shapes = trunk.kept_shapes

    def get_features(self, keys: Sequence[str]) -> tuple[FloatArray, BoolArray]:
        """Features of crops by key.

        Args:
            keys: N content keys.

        Returns:
            float32 (N, D), zero where missing, and which were found, bool (N,).
        """
        features = np.zeros((len(keys), self._feature_dim), np.float32)
        found = np.zeros(len(keys), np.bool_)
        for rows, payload in self._stored("features", keys):
            if len(payload) == self._feature_bytes:
                features[rows] = np.frombuffer(payload, np.float16)
                found[rows] = True
        return features, found

    def get_maps(self, keys: Sequence[str]) -> tuple[CompactMaps, BoolArray]:
        """Maps of crops by key.

        Args:
            keys: N content keys.

        Returns:
            Maps of N crops, zero where missing, and which were found, bool (N,).
        """
        maps = CompactMaps.empty(len(keys), self._map_shapes)
        found = np.zeros(len(keys), np.bool_)
        for rows, payload in self._stored("maps", keys):
            with suppress(ValueError):  # of other shapes
                for row in rows:
                    maps.fill_from_bytes(row, payload)
                found[rows] = True
        return maps, found

    def put_many(
        self, keys: Sequence[str], extracted: Extracted, *, with_maps: bool = True
    ) -> None:
        """Store crops; all of them or, after a crash, none.

        Args:
            keys: N content keys.
            extracted: features and maps of the same N crops.
            with_maps: whether they are worth seven times the room of the features, for Grad-CAM.
        """
        binary = [bytes.fromhex(key) for key in keys]
        with self._records.transaction() as connection:
            features = (row.tobytes() for row in extracted.features.astype(np.float16))
            _insert(connection, "features", binary, features)
            if with_maps:
                maps = (extracted.maps.to_bytes(row) for row in range(len(keys)))
                _insert(connection, "maps", binary, maps)
            self._evict(connection)
        self._records.shorten(self._max_bytes)
        self._make_room()

    def known_keys(self, identities: Sequence[str], *, mode: str) -> list[str | None]:
        """Content keys of pictures seen before.

        Args:
            identities: N strings that change when a picture does, such as address, size, date.
            mode: what the trunk looks at.

        Returns:
            N keys, None where the picture is new.
        """
        wanted = [_identity(identity, mode) for identity in identities]
        found: dict[bytes, bytes] = {}
        with self._pictures.reading() as connection:
            found.update(_select(connection, "identity, key", "pictures", "identity", wanted))
        keys = (found.get(identity) for identity in wanted)
        return [None if key is None else key.hex() for key in keys]

    def remember(self, identities: Sequence[str], keys: Sequence[str], *, mode: str) -> None:
        """Record the content keys of pictures for `known_keys`.

        The newest are kept, as many as there may be records of features.
        """
        rows = [
            (_identity(identity, mode), bytes.fromhex(key))
            for identity, key in zip(identities, keys, strict=True)
        ]
        with self._pictures.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?)", rows)
            _keep_newest_pictures(connection, self._max_bytes // self._feature_bytes)

    def _stored(self, table: str, keys: Sequence[str]) -> Iterator[tuple[list[int], bytes]]:
        """Undamaged records, each with the places of its key among the keys."""
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(bytes.fromhex(key), []).append(place)
        with self._records.reading() as connection:
            rows = _select(connection, "key, checksum, payload", table, "key", list(places))
            for key, checksum, payload in rows:
                if zlib.crc32(payload, 1) == checksum:
                    yield places[key], payload

    def _evict(self, connection: sqlite3.Connection) -> None:
        """Delete the oldest records while the file uses more than the size limit."""
        for table in ("maps", "features"):
            while _used_bytes(connection) > self._max_bytes and _delete_oldest(connection, table):
                pass

    def _make_room(self) -> None:
        """Delete other trunks' records, the longest unwritten first, while all are too many."""
        found = {}
        for file in self._folder.glob("*/features.sqlite"):
            with suppress(FileNotFoundError):  # another process makes room, too
                found[file.parent] = file.stat()
        n_bytes = sum(status.st_size for status in found.values())
        found.pop(self._own, None)
        for folder, status in sorted(found.items(), key=lambda item: item[1].st_mtime):
            if n_bytes <= self._max_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)
            n_bytes -= status.st_size
            _log.info("The features of another trunk, %s, are deleted to make room.", folder.name)


class _Database:
    """One SQLite file; a connection per use, so that threads and forks share nothing."""

    def __init__(self, path: Path, *, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S)
        try:
            self._create()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._replace_damaged(error)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from; a damaged file is replaced by an empty one.

        What was read before the damage was met stays valid; the rest counts as missing.
        """
        connection = self._open()
        try:
            with closing(connection):
                yield connection
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._replace_damaged(error)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection to write with; one writer at a time, all or nothing.

        Raises:
            sqlite3.DatabaseError: among others, the file is damaged; the next try has a new one.
        """
        try:
            with self._lock, closing(self._connect()) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._replace_damaged(error)
            raise

    def shorten(self, max_bytes: int) -> None:
        """Give back what the file is longer than it may be, as far as nothing is there."""
        with self._lock, closing(self._connect()) as connection:
            n_pages, _, page_bytes = _pages(connection)
            n_beyond = n_pages - max_bytes // page_bytes
            if n_beyond > 0:
                # Not `execute`, which takes one step of it, a page.
                connection.executescript(f"PRAGMA incremental_vacuum({n_beyond})")

    def _open(self) -> sqlite3.Connection:
        """A connection, to an empty file if the damage shows at once."""
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._replace_damaged(error)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """A connection, to an empty file where somebody has deleted it."""
        if not self._path.exists():
            self._create()
        return self._connect_as_it_is()

    def _connect_as_it_is(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, closing(self._connect_as_it_is()) as connection:
            # Of a new file only, and before anything else of it.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            # Builds that overwrite what is deleted would copy a whole dropped table into the log.
            connection.execute("PRAGMA secure_delete=OFF")
            connection.executescript(self._schema)

    def _replace_damaged(self, error: sqlite3.DatabaseError) -> None:
        _log.warning("The cache %s is damaged (%s); it is built anew.", self._path, error)
        with self._lock:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._create()


def _identity(identity: str, mode: str) -> bytes:
    return hashlib.sha256(f"{mode} {identity}".encode()).digest()


def _insert(
    connection: sqlite3.Connection, table: str, keys: Sequence[bytes], payloads: Iterator[bytes]
) -> None:
    # The start value 1 makes the checksum of an all-zero record differ from zero.
    rows = (
        (key, zlib.crc32(payload, 1), payload) for key, payload in zip(keys, payloads, strict=True)
    )
    connection.executemany(
        f"INSERT OR REPLACE INTO {table} (key, checksum, payload) VALUES (?, ?, ?)",  # noqa: S608 (table is ours)
        rows,
    )


def _select(
    connection: sqlite3.Connection, columns: str, table: str, key: str, wanted: Sequence[bytes]
) -> Iterator[tuple[Any, ...]]:
    """Rows whose key is wanted, a few hundred keys per query."""
    for start in range(0, len(wanted), _KEYS_PER_QUERY):
        some = wanted[start : start + _KEYS_PER_QUERY]
        marks = ",".join("?" * len(some))
        yield from connection.execute(
            f"SELECT {columns} FROM {table} WHERE {key} IN ({marks})",  # noqa: S608 (names are ours)
            some,
        )


def _used_bytes(connection: sqlite3.Connection) -> int:
    """Size of the file without its free pages."""
    n_pages, n_free, page_bytes = _pages(connection)
    return (n_pages - n_free) * page_bytes


def _pages(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """How many there are, how many of them are free, and the bytes of each."""
    n_pages, n_free, page_bytes = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return n_pages, n_free, page_bytes


def _delete_oldest(connection: sqlite3.Connection, table: str) -> int:
    """Delete one record; returns how many there were to delete."""
    return connection.execute(
        f"DELETE FROM {table} WHERE id = (SELECT min(id) FROM {table})"  # noqa: S608 (table is ours)
    ).rowcount


def _keep_newest_pictures(connection: sqlite3.Connection, count: int) -> None:
    connection.execute(
        "DELETE FROM pictures WHERE rowid <= (SELECT max(rowid) FROM pictures) - ?", (count,)
    )
