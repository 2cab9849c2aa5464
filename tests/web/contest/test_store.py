import hashlib
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import DataError, StorageError
from vizsla.web.contest.database import Database, exclusive
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import PartScore, canonical
from vizsla.web.contest.store import Standing, Store, TooMany, packed, unpacked

RULES = Rules()


def part_score(score: float) -> PartScore:
    return PartScore(score, (score / 2, score), {"top_k_accuracy": score})


def add(
    store: Store, group: str, score: float, *, at: float = 0.0, rules: Rules = RULES, more: str = ""
) -> "Future[Any]":
    """more: makes other lists of the same score."""
    text = canonical({"q": [group, f"{score}{more}"]})
    sha256 = hashlib.sha256(text).hexdigest()
    scores = {"all": part_score(score)}
    return store.add(group, packed(text), sha256, scores, received=at, rules=rules)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "judge.sqlite"


def test_submissions_are_read_back_in_order(path: Path) -> None:
    with Store(path) as store:
        for at, (group, score) in enumerate([("a", 0.5), ("b", 0.9), ("a", 0.7)]):
            add(store, group, score, at=at).result()
    with Store(path, create=False) as store:
        kept = list(store.each(chunk=2))
        assert [(one["id"], one["groupname"], one["received"]) for one in kept] == [
            (1, "a", 0.0), (2, "b", 1.0), (3, "a", 2.0)
        ]  # fmt: skip
        assert unpacked(kept[2]["lists"]) == {"q": ["a", "0.7"]}
        assert [(one.groupname, one.number) for one in store.history()] == [
            ("a", 1), ("b", 1), ("a", 2)
        ]  # fmt: skip
        assert [one.scores["all"] for one in store.history(1)] == [
            part_score(0.5), part_score(0.7)
        ]  # fmt: skip
        assert [one.id for one in store.history(newest=2)] == [2, 3]
        assert (store.count(), store.newest()) == (3, 3)


@pytest.mark.parametrize(("counts", "number", "score"), [("best", 2, 0.9), ("last", 4, 0.3)])
def test_best_or_last_counts(path: Path, counts: str, number: int, score: float) -> None:
    with Store(path) as store:
        for at, value in enumerate([0.5, 0.9, 0.9, 0.3]):
            add(store, "a", value, at=at, more=f" {at}").result()
        add(store, "b", 0.1, at=9).result()
        standings = {one.counted.groupname: one for one in store.standings("all", counts)}
        a = standings["a"]
        assert isinstance(a, Standing)
        assert (a.count, a.last, a.counted.number) == (4, 3.0, number)
        assert a.counted.scores["all"].score == score
        assert standings["b"].count == 1


def test_submissions_cannot_be_changed_or_deleted(path: Path) -> None:
    with Store(path) as store:
        add(store, "a", 0.5).result()
    connection = sqlite3.connect(path)
    for statement in (
        "UPDATE submissions SET received = 1",
        "DELETE FROM submissions",
        "INSERT OR REPLACE INTO submissions VALUES (1, 1, 0, '', '')",
        "UPDATE groups SET name = 'b'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match=r"(submissions|groups) are never"):
            connection.execute(statement)
    connection.close()


def test_the_writer_syncs_every_commit(path: Path) -> None:
    """WAL alone would lose the last commits when the power fails; FULL waits for the disk."""
    database = Database(path, create=True)
    pragma = database.write(lambda c: c.execute("PRAGMA synchronous").fetchone()[0])
    assert pragma.result() == 2
    mode = database.write(lambda c: c.execute("PRAGMA journal_mode").fetchone()[0])
    assert mode.result() == "wal"
    database.close()


def test_a_result_is_returned_only_after_its_commit(path: Path) -> None:
    """Another connection sees the row as soon as the future is done."""
    other = None
    with Store(path) as store:
        other = sqlite3.connect(path)
        for n in range(20):
            new = add(store, "a", n / 20).result().id
            assert other.execute("SELECT MAX(id) FROM submissions").fetchone()[0] == new
    other.close()


def test_waiting_writes_share_one_commit(path: Path) -> None:
    database = Database(path, create=True)
    gate, commits = threading.Event(), []
    blocker = database.write(lambda c: gate.wait(10))
    futures = [
        database.write(lambda c: commits.append(c.total_changes) or c.in_transaction)
        for _ in range(10)
    ]
    failing = database.write(lambda c: c.execute("INSERT INTO facts VALUES (NULL, NULL)"))
    after = database.write(lambda c: c.execute("INSERT INTO facts VALUES ('a', 'b')").rowcount)
    traced: list[str] = []
    database.write(lambda c: c.set_trace_callback(traced.append))
    gate.set()
    assert blocker.result() and all(future.result() for future in futures)
    with pytest.raises(sqlite3.IntegrityError):
        failing.result()
    assert after.result() == 1
    assert database.read("SELECT value FROM facts WHERE name = 'a'")[0]["value"] == "b"
    database.close()
    assert sum("COMMIT" in statement for statement in traced) <= 2


def test_a_full_disk_fails_all_waiting_writes_and_the_store_recovers(path: Path) -> None:
    with Store(path) as store:
        add(store, "a", 0.1).result()
        set_limit = "PRAGMA max_page_count = {}"
        database = store._database
        database.write(lambda c: c.execute(set_limit.format(30))).result()
        big = packed(bytes(range(256)) * 4000) * 200
        refused = store.add("a", big, "0" * 64, {"all": part_score(0.2)}, received=1.0, rules=RULES)
        with pytest.raises(StorageError, match="full"):
            refused.result()
        database.write(lambda c: c.execute(set_limit.format(1_000_000))).result()
        assert add(store, "a", 0.3).result().in_all == 2
        assert store.count() == 2


def test_limits_hold_under_concurrent_submissions(path: Path) -> None:
    rules = Rules(per_hour=5)
    with Store(path) as store:
        outcomes = [add(store, "a", 0.1, at=100.0, rules=rules, more=str(i)) for i in range(20)]
        refused = [future.exception() for future in outcomes]
        assert sum(error is None for error in refused) == store.count() == 5
        assert all(isinstance(error, TooMany) for error in refused if error)
        assert add(store, "b", 0.1, at=100.0, rules=rules).result().this_hour == 1


def test_waiting_times_are_exact(path: Path) -> None:
    rules = Rules(per_hour=2)
    with Store(path) as store:
        for at in (0.0, 1000.0):
            add(store, "a", 0.1, at=at, rules=rules, more=str(at)).result()
        with pytest.raises(TooMany) as refused:
            store.check_limits("a", "new", 1500.0, rules)
        assert refused.value.retry_after == 2100.0  # the first leaves the hour at 3600
        store.check_limits("a", "new", 3600.0, rules)
        with pytest.raises(TooMany, match="all 2 submissions") as refused:
            store.check_limits("a", "new", 9000.0, Rules(max_submissions=2))
        assert refused.value.retry_after == 86_400.0  # no waiting helps: tomorrow
        with pytest.raises(TooMany, match="all 2 submissions") as refused:
            store.check_limits("a", "new", 9000.0, Rules(max_submissions=2, closes=9500.0))
        assert refused.value.retry_after == 500.0  # when the contest closes


def test_rescoring_is_all_or_nothing(path: Path) -> None:
    with Store(path) as store:
        for score in (0.1, 0.2, 0.3):
            add(store, "a", score).result()

        def breaks(lists: dict) -> dict:
            if lists["q"][1] == "0.3":
                raise DataError("no")
            return {"all": part_score(0.9)}

        with pytest.raises(DataError):
            store.rescore(breaks, {"scored_by": "new"})
        assert [one.scores["all"].score for one in store.history()] == [0.1, 0.2, 0.3]
        assert store.fact("scored_by") is None
        done = store.rescore(lambda lists: {"all": part_score(0.9)}, {"scored_by": "new"})
        assert (done, store.fact("scored_by")) == (3, "new")
        assert {one.scores["all"].score for one in store.history()} == {0.9}


@pytest.mark.parametrize("damaged", [b"no zlib", packed(b'{"q":["x","0.1"]}')])
def test_rescoring_names_a_damaged_submission(path: Path, damaged: bytes) -> None:
    with Store(path) as store:
        for score in (0.1, 0.2):
            add(store, "a", score).result()
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TRIGGER submissions_stay")
            connection.execute("UPDATE submissions SET lists = ? WHERE id = 2", (damaged,))
        connection.close()
        with pytest.raises(StorageError, match="submission 2 is damaged"):
            store.rescore(lambda lists: {"all": part_score(0.9)}, {})
        assert [one.scores["all"].score for one in store.history()] == [0.1, 0.2]


def test_only_the_owner_can_read_the_file(path: Path) -> None:
    with Store(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no contest"):
        Store(path, create=False)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(DataError, match="another program"):
        Store(path)
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(StorageError, match="cannot use"):
        Store(text)
    with pytest.raises(StorageError, match="cannot open"):
        Store(tmp_path)


def test_only_one_judge_uses_a_file(path: Path) -> None:
    with exclusive(path), pytest.raises(StorageError, match="stop it first"), exclusive(path):
        pass
    with exclusive(path), Store(path):
        pass
    other = path.with_name("other.sqlite")
    other.symlink_to(path)
    with exclusive(path), pytest.raises(StorageError, match="stop it first"), exclusive(other):
        pass


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        add(store, "a", 0.1)


SERVING = """
import os, sys
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import PartScore
from vizsla.web.contest.store import Store, packed
Store(sys.argv[1]).close()
store = Store(sys.argv[1])
store.fact("rules")
score = {"all": PartScore(0.5, None, {})}
def add(*numbers):
    for n in numbers:
        store.add("a", packed(b"{}"), f"{n:064}", score, received=1.0, rules=Rules()).result()
add(1, 2)
print("ready", flush=True)
sys.stdin.readline()
add(3, 4, 5, 6, 7)
print(store.count(), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_token_added_from_outside_loses_nothing(path: Path) -> None:
    """The other process must not take the WAL away from the one that is killed afterwards."""
    command = [sys.executable, "-c", SERVING, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        adding = (
            "import sys, vizsla.web.contest.server as j; j.add_token('t', database=sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", adding, str(path)], check=True)
        server.stdin.write("\n")
        server.stdin.flush()
        assert server.stdout.readline() == "7\n"
        server.wait(20)
    with Store(path, create=False) as store:
        assert store.count() == 7
