"""ReviewStore: requests kept for people, in one SQLite file that processes share, within a quota and for a time."""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from askance.errors import AskanceError
from askance.service.call import ANONYMOUS
from askance.service.guard.limits import network_of

logger = logging.getLogger(__name__)

FILE = "review.sqlite3"
VERSION = 1
BUSY_SECONDS = 10.0  # that one process waits for another's write
DAY = 86_400.0
MEDIA = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
ARRAY = "application/x-npy"
"""Of pixels that came as numbers which no picture holds exactly: a numpy file, float32 [C, H, W] in [0, 1]."""
_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"RIFF", "image/webp"))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, at REAL NOT NULL, client TEXT NOT NULL, address TEXT NOT NULL, request_id TEXT NOT NULL,
    bundle TEXT NOT NULL, label TEXT NOT NULL, probability REAL NOT NULL, verdict TEXT NOT NULL, p_value REAL NOT NULL,
    words TEXT NOT NULL, why TEXT NOT NULL, media TEXT NOT NULL, bytes INTEGER NOT NULL,
    mark TEXT, marked_by TEXT, marked_at REAL
);
CREATE INDEX IF NOT EXISTS by_time ON requests (at);
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS accesses (at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, id TEXT);
"""
_COLUMNS = (
    "id, at, client, address, request_id, bundle, label, probability, verdict, p_value, words, why, media, bytes, "
    "mark, marked_by, marked_at"
)


class Mark(StrEnum):
    """What a person says of a request.

    Attributes:
        FALSE_ALARM: it is what the classifier is for.
        ATTACK: somebody tried.
        UNSURE: it cannot be told.
    """

    FALSE_ALARM = "false-alarm"
    ATTACK = "attack"
    UNSURE = "unsure"


@dataclass(frozen=True)
class Kept:
    """One request that is kept; its image lies beside it.

    Attributes:
        id: its name in the store, in order of time.
        at: when it was answered, in Unix time.
        client, address: who sent it.
        request_id: as the log has it.
        bundle: what answered, by its id.
        label: the predicted class.
        probability: of it.
        verdict: what was said of it.
        p_value: the fused one.
        words: what each detector saw, a line each.
        why: "flagged", or "sample": drawn by chance of those that were not.
        media: what its image is, one of MEDIA or ARRAY.
        bytes: how large that is.
        mark: what a person says of it; None: nobody has yet.
        marked_by, marked_at: who, and when.
    """

    id: str
    at: float
    client: str
    address: str
    request_id: str
    bundle: str
    label: str
    probability: float
    verdict: str
    p_value: float
    words: tuple[str, ...]
    why: str
    media: str
    bytes: int
    mark: Mark | None = None
    marked_by: str | None = None
    marked_at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class ReviewStore:
    """The requests of a folder. Any thread may use it; each write is whole or did not happen.

    Args:
        folder: where the file is; it is made, for its owner alone, if need be.
        max_bytes: of the images kept; the oldest make room, those with a mark last.
        keep_seconds: for how long a request is kept.
        must_exist: refuse a folder without a store.

    Raises:
        AskanceError: the folder cannot be written, or holds no store of this kind.
    """

    def __init__(
        self, folder: Path, max_bytes: int = 2**30, keep_seconds: float = 30 * DAY, *, must_exist: bool = False
    ) -> None:
        self._max_bytes, self._keep_seconds = max_bytes, keep_seconds
        self._lock = threading.Lock()
        file = folder / FILE
        if must_exist and not file.is_file():
            raise AskanceError(
                f"{folder} holds no requests for review: expected {FILE} there (review.folder of a server)"
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # images of clients': nobody else's to read
            self._database = sqlite3.connect(file, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._database.create_function("is_of", 3, _is_of, deterministic=True)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise AskanceError(f"{file} is of another askance (version {version}, here {VERSION}): use that one")
            self._database.executescript(
                f"PRAGMA auto_vacuum = FULL; PRAGMA journal_mode = WAL; {_SCHEMA} PRAGMA user_version = {VERSION};"
            )
        except (OSError, sqlite3.Error) as error:
            raise AskanceError(f"requests for review cannot be kept in {folder}: {error}") from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def keep(self, kept: Kept, content: bytes) -> None:
        """Keep a request, and let go of those that are too old, or for which there is no room.

        Raises:
            sqlite3.Error: the disk is full, say; nothing has changed.
        """
        if len(content) > self._max_bytes:
            return
        values = asdict(kept) | {"words": orjson.dumps(kept.words).decode()}
        with self._writing() as database:
            database.execute(
                f"INSERT INTO requests ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
            )
            database.execute("INSERT INTO images VALUES (?, ?)", (kept.id, content))
            oldest = time.time() - self._keep_seconds
            self._forget(
                database, [row[0] for row in database.execute("SELECT id FROM requests WHERE at < ?", (oldest,))]
            )
            database.execute("DELETE FROM accesses WHERE at < ?", (oldest,))
            self._forget(database, self._beyond(database))

    def _beyond(self, database: sqlite3.Connection) -> list[str]:
        """Those for which there is no room: without a mark first, and then the oldest first."""
        over = database.execute("SELECT COALESCE(SUM(bytes), 0) FROM requests").fetchone()[0] - self._max_bytes
        found: list[str] = []
        if over > 0:
            for name, size in database.execute("SELECT id, bytes FROM requests ORDER BY mark IS NOT NULL, at"):
                found.append(name)
                over -= size
                if over <= 0:
                    break
        return found

    @staticmethod
    def _forget(database: sqlite3.Connection, names: Sequence[str]) -> None:
        for table in ("requests", "images"):
            database.executemany(f"DELETE FROM {table} WHERE id = ?", [(name,) for name in names])

    def listed(
        self,
        who: str,
        *,
        verdict: str | None = None,
        mark: Mark | None = None,
        unmarked: bool = False,
        client: str | None = None,
        limit: int = -1,
    ) -> list[Kept]:
        """The requests that are kept, the latest first.

        Args:
            who: asks; that is logged.
            verdict: only those.
            mark: only those with it.
            unmarked: only those without any.
            client: only that one's: its name; or an anonymous one's address, or IPv6 network, as "ipv6:2001::/64".
            limit: the most; -1 is all.
        """
        wanted = {"verdict = ?": verdict, "mark = ?": mark, "is_of(client, address, ?)": client}
        where = [condition for condition, value in wanted.items() if value is not None]
        where += ["mark IS NULL"] if unmarked else []
        found = self._rows(
            f"{'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY at DESC LIMIT ?",
            (*(value for value in wanted.values() if value is not None), limit),
        )
        self._accessed(who, "list", None)
        return found

    def one(self, name: str, who: str) -> Kept:
        """A request by its id.

        Raises:
            KeyError: it is not kept.
        """
        found = self._rows("WHERE id = ?", (name,))
        if not found:
            raise KeyError(name)
        self._accessed(who, "show", name)
        return found[0]

    def content(self, name: str, who: str) -> tuple[str, bytes]:
        """What a request's image is, one of MEDIA or ARRAY, and the image as it came.

        Raises:
            KeyError: it is not kept.
        """
        with self._lock:
            row = self._database.execute(
                "SELECT media, content FROM requests JOIN images USING (id) WHERE id = ?", (name,)
            ).fetchone()
        if row is None:
            raise KeyError(name)
        self._accessed(who, "image", name)
        return row[0], row[1]

    def shown(self, name: str, who: str) -> tuple[str, bytes]:
        """As `content`, but pixels that came as numbers are a PNG file, rounded.

        Raises:
            KeyError: it is not kept.
        """
        media, content = self.content(name, who)
        return (media, content) if media != ARRAY else ("image/png", _png(np.load(io.BytesIO(content))))

    def mark(self, name: str, mark: Mark, who: str) -> None:
        """Say what it is.

        Raises:
            KeyError: it is not kept.
        """
        with self._writing() as database:
            changed = database.execute(
                "UPDATE requests SET mark = ?, marked_by = ?, marked_at = ? WHERE id = ?",
                (mark, who, time.time(), name),
            )
            if not changed.rowcount:
                raise KeyError(name)
        self._accessed(who, f"mark {mark}", name)

    def accesses(self) -> list[tuple[float, str, str, str | None]]:
        """Who looked at what, or marked it, and when; the oldest first."""
        with self._lock:
            return list(self._database.execute("SELECT at, who, what, id FROM accesses ORDER BY rowid"))

    def _rows(self, rest: str, values: Sequence[Any]) -> list[Kept]:
        with self._lock:
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM requests {rest}", values).fetchall()
        names = [name.strip() for name in _COLUMNS.split(",")]
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [
            Kept(
                **one
                | {
                    "words": tuple(orjson.loads(one["words"])),
                    "mark": None if one["mark"] is None else Mark(one["mark"]),
                }
            )
            for one in found
        ]

    def _accessed(self, who: str, what: str, name: str | None) -> None:
        logger.info("review: %s%s by %s", what, "" if name is None else f" {name}", who)
        with self._writing() as database:
            database.execute("INSERT INTO accesses VALUES (?, ?, ?, ?)", (time.time(), who, what, name))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _is_of(name: str, address: str, client: str) -> bool:
    """Whether a request is a client's, whom the one or the other says."""
    if name != ANONYMOUS:
        return name == client
    prefix = client.rpartition("/")[2]
    return client in {address, network_of(address, int(prefix) if prefix.isdecimal() else 128)}


def encoded(file: bytes | memoryview | None, pixels: NDArray[np.float32]) -> tuple[str, bytes]:
    """What an image is, and its bytes: the file that came; or a picture of the pixels where one holds them exactly, and
    else an array.

    Args:
        file: as it came; None where pixels did.
        pixels: [C, H, W] in [0, 1].
    """
    if file is not None:
        content = bytes(file)
        return next((media for signature, media in _SIGNATURES if content.startswith(signature)), "image/png"), content
    if np.array_equal(np.rint(pixels * 255).astype(np.float32) / np.float32(255), pixels):
        return "image/png", _png(pixels)
    kept = io.BytesIO()
    np.save(kept, pixels)
    return ARRAY, kept.getvalue()


def _png(pixels: NDArray[np.float32]) -> bytes:
    values = np.rint(pixels * 255).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(made, "PNG")
    return made.getvalue()
