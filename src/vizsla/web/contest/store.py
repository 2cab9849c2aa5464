"""Submissions, scores and tokens ↔ the contest's file. Knows no truth, no metric and no HTTP.

A submission is written once and never changed: triggers in the file itself refuse it. Its scores
stand in a table of their own and can be written anew.
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

HOUR = 3600.0


class TooMany(VizslaError):
    """A group has used up its submissions. wait: seconds until another may come; None: never."""

    def __init__(self, message: str, wait: float | None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Stored:
    """A submission that is on the disk. in_all, this_hour: how many its group now has."""

    id: int
    in_all: int
    this_hour: int


@dataclass(frozen=True)
class Submission:
    """One submission with its scores, {part: PartScore}; number counts within the group from 1."""

    id: int
    number: int
    received: float
    sha256: str
    scores: dict[str, PartScore]


@dataclass(frozen=True)
class Standing:
    """A group and the submission that counts for it. count: its submissions, last: the newest."""

    group_id: int
    name: str
    count: int
    last: float
    counted: Submission


class Store:
    """The contest's file, as a context manager or with `close`. Safe to use from many threads."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._database = Database(path, create=create)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── facts: the rules, which truth scored, the organiser's token ──────────────────────────────

    def fact(self, name: str) -> str | None:
        rows = self._database.read("SELECT value FROM facts WHERE name = ?", name)
        return rows[0]["value"] if rows else None

    def write_facts(self, facts: Mapping[str, str]) -> None:
        self._database.write(lambda connection: _write_facts(connection, facts)).result()

    # ── groups and tokens ────────────────────────────────────────────────────────────────────────

    def token_hash(self, name: str) -> str | None:
        """None: no such group, or one without a token."""
        rows = self._database.read("SELECT token_hash FROM groups WHERE name = ?", name)
        return rows[0]["token_hash"] if rows else None

    def set_token_hash(self, name: str, token_hash: str | None) -> None:
        self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO groups (name, token_hash, created) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET token_hash = excluded.token_hash",
                (name, token_hash, time.time()),
            )
        ).result()

    def groups_with_token(self) -> list[str]:
        rows = self._database.read(
            "SELECT name FROM groups WHERE token_hash IS NOT NULL ORDER BY name"
        )
        return [row["name"] for row in rows]

    def group(self, group_id: int) -> str | None:
        """The name of a group that has handed in, None where there is none."""
        rows = self._database.read(
            "SELECT name FROM groups WHERE id = ? "
            "AND EXISTS (SELECT 1 FROM submissions WHERE group_id = groups.id)",
            group_id,
        )
        return rows[0]["name"] if rows else None

    # ── submissions ──────────────────────────────────────────────────────────────────────────────

    def check_limits(self, group: str, received: float, rules: Rules) -> None:
        """TooMany if a submission of this group would now be one too many."""
        self._database.read_with(
            lambda connection: _check_limits(connection, group, received, rules)
        )

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
        """Done when the submission is on the disk; its exception: TooMany or StorageError.

        lists: as `packed` gives them. The limits of `rules` are checked in the same transaction.
        """

        def write(connection: sqlite3.Connection) -> Stored:
            in_all, this_hour = _check_limits(connection, group, received, rules)
            connection.execute(
                "INSERT OR IGNORE INTO groups (name, created) VALUES (?, ?)", (group, received)
            )
            cursor = connection.execute(
                "INSERT INTO submissions (group_id, received, sha256, lists) "
                "SELECT id, ?, ?, ? FROM groups WHERE name = ?",
                (received, sha256, lists, group),
            )
            new = cursor.lastrowid
            assert new is not None
            _write_scores(connection, new, scores)
            return Stored(new, in_all + 1, this_hour + 1)

        return self._database.write(write)

    def count(self) -> int:
        return int(self._database.read("SELECT COUNT(*) AS n FROM submissions")[0]["n"])

    def newest(self) -> int:
        """The largest id of a submission, 0 without any."""
        rows = self._database.read("SELECT COALESCE(MAX(id), 0) AS newest FROM submissions")
        return int(rows[0]["newest"])

    def each(self, *, chunk: int = 20) -> Iterator[dict[str, Any]]:
        """Every submission in order of arrival: id, groupname, received, sha256, lists (packed)."""
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
        """Each group with the submission that counts by its score of `part`, in no order."""
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
            SELECT p.group_id, g.name, p.count, p.last, p.number, s.id, s.received, s.sha256
            FROM placed p
            JOIN groups g ON g.id = p.group_id
            JOIN submissions s ON s.id = p.id
            WHERE p.place = 1
            """,
            part,
        )
        counted = self._with_scores(rows)
        return [
            Standing(row["group_id"], row["name"], row["count"], row["last"], submission)
            for row, submission in zip(rows, counted, strict=True)
        ]

    def history(
        self, group_id: int | None = None, *, newest: int | None = None
    ) -> list[tuple[str, Submission]]:
        """(group, submission) of one group or of all, oldest first; the newest N alone if given."""
        rows = self._database.read(
            "SELECT s.id, s.received, s.sha256, g.name, ROW_NUMBER() OVER "
            "(PARTITION BY s.group_id ORDER BY s.received, s.id) AS number "
            "FROM submissions s JOIN groups g ON g.id = s.group_id "
            "WHERE ? IS NULL OR s.group_id = ? ORDER BY s.received DESC, s.id DESC LIMIT ?",
            group_id,
            group_id,
            -1 if newest is None else newest,
        )[::-1]
        return list(zip([row["name"] for row in rows], self._with_scores(rows), strict=True))

    def rescore(
        self,
        score: Callable[[dict[str, list[str]]], Mapping[str, PartScore]],
        facts: Mapping[str, str],
    ) -> int:
        """Scores every submission anew and writes `facts`, all in one transaction; how many.

        When anything fails, all scores stay as they were.
        """

        def write(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM scores")
            done = 0
            for row in connection.execute("SELECT id, sha256, lists FROM submissions"):
                _write_scores(connection, row["id"], score(_sound_lists(row)))
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
            scores[found["submission_id"]][found["part"]] = PartScore(
                found["score"], found["low"], found["high"], json.loads(found["metrics"])
            )
        return [
            Submission(row["id"], row["number"], row["received"], row["sha256"], scores[row["id"]])
            for row in rows
        ]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def packed(canonical: bytes) -> bytes:
    return zlib.compress(canonical, 1)


def unpacked(blob: bytes) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = json.loads(zlib.decompress(blob))
    return lists


def _sound_lists(row: sqlite3.Row) -> dict[str, list[str]]:
    """The lists of a submission; StorageError if they are not those that were handed in."""
    try:
        sound = hashlib.sha256(zlib.decompress(row["lists"])).hexdigest() == row["sha256"]
    except zlib.error:
        sound = False
    if not sound:
        raise StorageError(
            f"submission {row['id']} is damaged: its lists do not fit their SHA-256. "
            "Nothing was scored anew; take the contest's file from a backup"
        )
    return unpacked(row["lists"])


def _check_limits(
    connection: sqlite3.Connection, group: str, received: float, rules: Rules
) -> tuple[int, int]:
    """(submissions in all, in the last hour) so far; TooMany at a limit."""
    since = received - HOUR
    row = connection.execute(
        "SELECT COUNT(*) AS in_all, COALESCE(SUM(received > ?), 0) AS this_hour FROM submissions "
        "WHERE group_id = (SELECT id FROM groups WHERE name = ?)",
        (since, group),
    ).fetchone()
    in_all, this_hour = row["in_all"], row["this_hour"]
    if rules.in_all is not None and in_all >= rules.in_all:
        raise TooMany(f"all {rules.in_all} submissions of this group are used up", None)
    if rules.per_hour is not None and this_hour >= rules.per_hour:
        leaves = connection.execute(
            "SELECT received FROM submissions "
            "WHERE group_id = (SELECT id FROM groups WHERE name = ?) AND received > ? "
            "ORDER BY received LIMIT 1 OFFSET ?",
            (group, since, this_hour - rules.per_hour),
        ).fetchone()["received"]
        raise TooMany(
            f"{rules.per_hour} submissions an hour are allowed, this group has had {this_hour}",
            max(1.0, leaves + HOUR - received),
        )
    return in_all, this_hour


def _write_scores(
    connection: sqlite3.Connection, submission_id: int, scores: Mapping[str, PartScore]
) -> None:
    connection.executemany(
        "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
        [
            (submission_id, part, one.score, one.low, one.high, json.dumps(one.metrics))
            for part, one in scores.items()
        ],
    )


def _write_facts(connection: sqlite3.Connection, facts: Mapping[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))
