"""Submissions, scores and tokens ↔ the contest's file. Knows no truth, no metric and no HTTP.

A submission is written once and never changed: triggers in the file refuse it. Scores have a table
of their own and can be computed again.
"""

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.errors import StorageError, VizslaError
from vizsla.web.contest.database import Database
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import PartScore

HOUR, DAY = 3600.0, 86_400.0  # seconds


class TooMany(VizslaError):
    """A group has used up its submissions. retry_after: seconds after which to ask again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Stored:
    """A submission that is on the disk. number: within its group, from 1.

    in_all, this_hour: how many its group has made. repeated: it was there before, and counts once.
    """

    id: int
    number: int
    in_all: int
    this_hour: int
    repeated: bool = False


@dataclass(frozen=True)
class Submission:
    """One submission with its scores, {part: PartScore}; number counts within the group, from 1."""

    id: int
    groupname: str
    number: int
    received: float
    sha256: str
    scores: dict[str, PartScore]


@dataclass(frozen=True)
class Standing:
    """A group and the submission that counts for it.

    count: how many submissions it has made; last: when the newest arrived.
    """

    group_id: int
    count: int
    last: float
    counted: Submission


class Store:
    """The contest's file; a context manager. Safe to use from many threads."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._database = Database(path, create=create)

    def close(self) -> None:
        """Waits until all accepted submissions are on the disk, and closes the file."""
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── facts: the rules, which truth scored, the organiser's token ──────────────────────────────

    def fact(self, name: str) -> str | None:
        """The value of a fact, None if it was never written."""
        rows = self._database.read("SELECT value FROM facts WHERE name = ?", name)
        return rows[0]["value"] if rows else None

    def write_facts(self, facts: Mapping[str, str]) -> None:
        """Writes or replaces facts; they are on the disk when it returns."""
        self._database.write(lambda connection: _write_facts(connection, facts)).result()

    # ── groups and tokens ────────────────────────────────────────────────────────────────────────

    def token_hash(self, name: str) -> str | None:
        """The hash of a group's token; None: there is no such group, or it has no token."""
        rows = self._database.read("SELECT token_hash FROM groups WHERE name = ?", name)
        return rows[0]["token_hash"] if rows else None

    def set_token_hash(self, name: str, token_hash: str | None) -> None:
        """Gives a group a token; None takes it away. A new group is created."""
        self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO groups (name, token_hash, created) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET token_hash = excluded.token_hash",
                (name, token_hash, time.time()),
            )
        ).result()

    def groups_with_token(self) -> list[str]:
        """Their names, sorted."""
        rows = self._database.read(
            "SELECT name FROM groups WHERE token_hash IS NOT NULL ORDER BY name"
        )
        return [row["name"] for row in rows]

    # ── submissions ──────────────────────────────────────────────────────────────────────────────

    def check_limits(self, group: str, sha256: str, received: float, rules: Rules) -> None:
        """Raises TooMany if this group has no submission left, and has not made this one."""

        def check(connection: sqlite3.Connection) -> None:
            if _repeated(connection, group, sha256, rules) is None:
                _check_limits(connection, group, received, rules)

        self._database.read_with(check)

    def used(self, received: float) -> dict[str, tuple[int, int]]:
        """Group → how many submissions it has made in all, and in the hour before `received`."""
        rows = self._database.read(
            "SELECT g.name, COUNT(*) AS in_all, SUM(s.received > ?) AS this_hour "
            "FROM submissions s JOIN groups g ON g.id = s.group_id GROUP BY g.id",
            received - HOUR,
        )
        return {row["name"]: (row["in_all"], row["this_hour"]) for row in rows}

    def add(
        self,
        group: str,
        lists: bytes,
        sha256: str,
        scores: Mapping[str, PartScore],
        *,
        received: float,
        rules: Rules,
    ) -> "Future[Stored]":
        """A future that is done when the submission is on the disk.

        Its exception is TooMany or StorageError. lists: as `packed` returns them. The limits of
        `rules` are checked in the same transaction. A group's repeated submission is not stored.
        """

        def write(connection: sqlite3.Connection) -> Stored:
            if (before := _repeated(connection, group, sha256, rules)) is not None:
                used = _used(connection, group, received)
                return Stored(before["id"], before["number"], *used, repeated=True)
            in_all, this_hour = _check_limits(connection, group, received, rules)
            connection.execute(
                "INSERT INTO groups (name, created) SELECT ?, ? "  # OR IGNORE would use up an id
                "WHERE NOT EXISTS (SELECT 1 FROM groups WHERE name = ?)",
                (group, received, group),
            )
            cursor = connection.execute(
                "INSERT INTO submissions (group_id, received, sha256, lists) "
                "SELECT id, ?, ?, ? FROM groups WHERE name = ?",
                (received, sha256, lists, group),
            )
            new = cursor.lastrowid
            assert new is not None
            _write_scores(connection, new, scores)
            return Stored(new, in_all + 1, in_all + 1, this_hour + 1)

        return self._database.write(write)

    def count(self) -> int:
        """The number of submissions of all groups."""
        return int(self._database.read("SELECT COUNT(*) AS n FROM submissions")[0]["n"])

    def newest(self) -> int:
        """The largest id of a submission, 0 if there is none."""
        rows = self._database.read("SELECT COALESCE(MAX(id), 0) AS newest FROM submissions")
        return int(rows[0]["newest"])

    def each(self, *, chunk: int = 20) -> Iterator[dict[str, Any]]:
        """Yields every submission by id: id, groupname, received, sha256, lists (packed)."""
        after = 0
        while rows := self._database.read(
            "SELECT s.id, g.name AS groupname, s.received, s.sha256, s.lists "
            "FROM submissions s JOIN groups g ON g.id = s.group_id "
            "WHERE s.id > ? ORDER BY s.id LIMIT ?",
            after,
            chunk,
        ):
            yield from map(dict, rows)
            after = rows[-1]["id"]

    def standings(self, part: str, counts: str) -> list[Standing]:
        """Each group with its best or last submission, in no order.

        counts: "best" by the score of `part`, or "last".
        """
        first = {"best": "sc.score DESC, s.received, s.id", "last": "s.received DESC, s.id DESC"}
        rows = self._database.read(
            f"""
            WITH placed AS (
                SELECT s.id, s.group_id,
                    ROW_NUMBER() OVER (PARTITION BY s.group_id ORDER BY {first[counts]}) AS place,
                    ROW_NUMBER() OVER (PARTITION BY s.group_id ORDER BY s.received, s.id) AS number,
                    COUNT(*) OVER (PARTITION BY s.group_id) AS count,
                    MAX(s.received) OVER (PARTITION BY s.group_id) AS last
                FROM submissions s
                JOIN scores sc ON sc.submission_id = s.id AND sc.part = ?
            )
            SELECT p.group_id, g.name AS groupname, p.count, p.last, p.number,
                s.id, s.received, s.sha256
            FROM placed p
            JOIN groups g ON g.id = p.group_id
            JOIN submissions s ON s.id = p.id
            WHERE p.place = 1
            """,
            part,
        )
        counted = self._with_scores(rows)
        return [
            Standing(row["group_id"], row["count"], row["last"], submission)
            for row, submission in zip(rows, counted, strict=True)
        ]

    def history(
        self, group_id: int | None = None, *, newest: int | None = None
    ) -> list[Submission]:
        """The submissions of one group or of all, oldest first. newest: the newest n only."""
        rows = self._database.read(
            "SELECT s.id, s.received, s.sha256, g.name AS groupname, ROW_NUMBER() OVER "
            "(PARTITION BY s.group_id ORDER BY s.received, s.id) AS number "
            "FROM submissions s JOIN groups g ON g.id = s.group_id "
            "WHERE ? IS NULL OR s.group_id = ? ORDER BY s.received DESC, s.id DESC LIMIT ?",
            group_id,
            group_id,
            -1 if newest is None else newest,
        )[::-1]
        return self._with_scores(rows)

    def rescore(
        self,
        score: Callable[[dict[str, list[str]]], Mapping[str, PartScore]],
        facts: Mapping[str, str],
    ) -> int:
        """Scores every submission again and writes `facts`; returns the number of submissions.

        One transaction: if anything fails, all scores stay as they were.
        """

        def write(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM scores")
            done = 0
            for row in connection.execute("SELECT id, sha256, lists FROM submissions"):
                _write_scores(connection, row["id"], score(_verified_lists(row)))
                done += 1
            _write_facts(connection, facts)
            return done

        return int(self._database.write(write).result())

    def _with_scores(self, rows: list[sqlite3.Row]) -> list[Submission]:
        scores: dict[int, dict[str, PartScore]] = {row["id"]: {} for row in rows}
        for found in self._database.read(
            "SELECT * FROM scores WHERE submission_id IN (SELECT value FROM json_each(?))",
            json.dumps(list(scores)),
        ):
            interval = None if found["low"] is None else (found["low"], found["high"])
            scores[found["submission_id"]][found["part"]] = PartScore(
                found["score"], interval, json.loads(found["metrics"])
            )
        return [
            Submission(
                row["id"],
                row["groupname"],
                row["number"],
                row["received"],
                row["sha256"],
                scores[row["id"]],
            )
            for row in rows
        ]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def packed(canonical: bytes) -> bytes:
    """The canonical JSON of the lists, compressed as the file keeps it."""
    return zlib.compress(canonical, 1)


def unpacked(blob: bytes) -> dict[str, list[str]]:
    """The lists that `packed` compressed."""
    lists: dict[str, list[str]] = json.loads(zlib.decompress(blob))
    return lists


def _verified_lists(row: sqlite3.Row) -> dict[str, list[str]]:
    """The lists of a submission. Raises StorageError if they do not match their SHA-256."""
    try:
        intact = hashlib.sha256(zlib.decompress(row["lists"])).hexdigest() == row["sha256"]
    except zlib.error:
        intact = False
    if not intact:
        raise StorageError(
            f"submission {row['id']} is damaged: its lists do not match their SHA-256. "
            "No score was changed; restore the contest's file from a backup"
        )
    return unpacked(row["lists"])


def _repeated(
    connection: sqlite3.Connection, group: str, sha256: str, rules: Rules
) -> sqlite3.Row | None:
    """`id` and `number` of the group's submission of the same lists; where the last one counts,
    only the last is looked at: an earlier one may be sent again, to count."""
    rows = connection.execute(
        "SELECT id, sha256, ROW_NUMBER() OVER (ORDER BY received, id) AS number FROM submissions "
        "WHERE group_id = (SELECT id FROM groups WHERE name = ?) ORDER BY received DESC, id DESC",
        (group,),
    )
    known = rows.fetchmany(1) if rules.counts == "last" else rows.fetchall()
    return next((row for row in known if row["sha256"] == sha256), None)


def _used(connection: sqlite3.Connection, group: str, received: float) -> tuple[int, int]:
    """How many submissions the group has made in all, and in the last hour."""
    row = connection.execute(
        "SELECT COUNT(*) AS in_all, COALESCE(SUM(received > ?), 0) AS this_hour FROM submissions "
        "WHERE group_id = (SELECT id FROM groups WHERE name = ?)",
        (received - HOUR, group),
    ).fetchone()
    return row["in_all"], row["this_hour"]


def _check_limits(
    connection: sqlite3.Connection, group: str, received: float, rules: Rules
) -> tuple[int, int]:
    """(submissions in all, in the last hour) so far. Raises TooMany at a limit."""
    in_all, this_hour = _used(connection, group, received)
    if rules.max_submissions is not None and in_all >= rules.max_submissions:
        # no waiting helps: come back when the contest has closed, or tomorrow
        wait = DAY if rules.closes is None else max(1.0, rules.closes - received)
        raise TooMany(f"all {rules.max_submissions} submissions of this group are used up", wait)
    if rules.per_hour is not None and this_hour >= rules.per_hour:
        leaves = connection.execute(
            "SELECT received FROM submissions "
            "WHERE group_id = (SELECT id FROM groups WHERE name = ?) AND received > ? "
            "ORDER BY received LIMIT 1 OFFSET ?",
            (group, received - HOUR, this_hour - rules.per_hour),
        ).fetchone()["received"]
        raise TooMany(
            f"{rules.per_hour} submissions an hour are allowed, this group has made {this_hour}",
            max(1.0, leaves + HOUR - received),
        )
    return in_all, this_hour


def _write_scores(
    connection: sqlite3.Connection, submission_id: int, scores: Mapping[str, PartScore]
) -> None:
    connection.executemany(
        "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                submission_id,
                part,
                one.score,
                *(one.interval or (None, None)),
                json.dumps(one.metrics),
            )
            for part, one in scores.items()
        ],
    )


def _write_facts(connection: sqlite3.Connection, facts: Mapping[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))
