"""Stored submissions → what anyone may see of them now: leaderboard, histories, tables.

The one place that decides which scores are shown: all that leaves the server about scores goes
through `visible`, except the answer to a submission, which gives the first part alone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vizsla.web.contest.rules import Rules, iso
from vizsla.web.contest.scoring import PartScore, Scorer
from vizsla.web.contest.store import Standing, Store, Submission
from vizsla.web.shell.templating import to_csv


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard. scores: by part, what may be seen, the part that ranks first."""

    rank: int
    group_id: int
    name: str
    scores: dict[str, PartScore]
    count: int
    last: float
    counted: int
    counted_at: float

    @property
    def score(self) -> PartScore:
        return next(iter(self.scores.values()))


class Board:
    """The leaderboard and what belongs to it. Safe to use from many threads.

    now: the moment of the request, read once by who answers it: one answer must not show the
    contest before and after its closing.
    """

    def __init__(
        self, store: Store, scorer: Scorer, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store, self.scorer, self.clock = store, scorer, clock
        self._lock = threading.Lock()
        self._kept: tuple[tuple[int, list[str]], list[Row]] | None = None
        self._rest_until = 0.0

    @property
    def rules(self) -> Rules:
        return self.scorer.rules

    def parts(self, now: float) -> list[str]:
        """The parts whose scores may be seen."""
        return self.rules.visible_parts(now)

    def rows(self, now: float) -> list[Row]:
        """By rank; equal scores share one, the earlier submission first.

        Made anew when something was handed in, but not so often that it would slow the server.
        """
        with self._lock:
            parts = self.parts(now)
            state = (self.store.newest(), parts)
            started = time.monotonic()
            fresh = self._kept is not None and (
                self._kept[0] == state or (self._kept[0][1] == parts and started < self._rest_until)
            )
            if not fresh:
                standings = self.store.standings(self.rules.parts()[0], self.rules.counts)
                self._kept = (state, ranked(standings, parts))
                took = time.monotonic() - started
                self._rest_until = started + (10 * took if took > 0.05 else 0)
            assert self._kept is not None
            return self._kept[1]

    def row(self, group_id: int, now: float) -> Row | None:
        return next((row for row in self.rows(now) if row.group_id == group_id), None)

    def history(self, group_id: int, now: float) -> list[Submission]:
        """A group's submissions, oldest first, with the scores that may be seen."""
        return self._seen(self.store.history(group_id), now)

    def all_submissions(
        self, now: float, *, newest: int | None = None
    ) -> list[tuple[str, Submission]]:
        """(group, submission) of all groups, oldest first, with the scores that may be seen."""
        found = self.store.history(newest=newest)
        return list(zip([name for name, _ in found], self._seen(found, now), strict=True))

    def _seen(self, found: list[tuple[str, Submission]], now: float) -> list[Submission]:
        parts = self.parts(now)
        return [
            Submission(s.id, s.number, s.received, s.sha256, visible(s.scores, parts))
            for _, s in found
        ]

    # ── as data ──────────────────────────────────────────────────────────────────────────────────

    def contest(self, now: float) -> dict[str, Any]:
        rules = self.rules
        sizes = self.scorer.part_sizes()
        return {
            "title": rules.title,
            "phase": rules.phase(now),
            "metric": rules.metric,
            "top_k": rules.top_k,
            "queries": len(self.scorer.queries),
            "gallery": len(self.scorer.gallery),
            "part": self.parts(now)[0],
            "queries_in_part": sizes[self.parts(now)[0]],
            "counts": rules.counts,
            "groups": rules.groups,
            "opens": None if rules.opens is None else iso(rules.opens),
            "closes": None if rules.closes is None else iso(rules.closes),
            "submissions_per_hour": rules.per_hour,
            "submissions_in_all": rules.in_all,
        }

    def leaderboard(self) -> dict[str, Any]:
        now = self.clock()
        rows = [_row_record(row) for row in self.rows(now)]
        return {"contest": self.contest(now), "leaderboard": rows}

    def group(self, group_id: int) -> dict[str, Any] | None:
        now = self.clock()
        history = self.history(group_id, now)
        row = self.row(group_id, now)
        if row is None or not history:
            return None
        return {
            "groupname": row.name,
            "rank": row.rank,
            "submissions": [_submission_record(submission) for submission in history],
        }

    def leaderboard_csv(self) -> str:
        now = self.clock()
        sample = Row(0, 0, "", self._sample(now), 0, 0.0, 0, 0.0)
        rows = [_flat(_row_record(row)) for row in self.rows(now)]
        return to_csv(rows, columns=list(_flat(_row_record(sample))))

    def submissions_csv(self) -> str:
        now = self.clock()
        sample = _submission_record(Submission(0, 0, 0.0, "", self._sample(now)))
        rows = [_flat(record) for record in self.submission_records(now)]
        return to_csv(rows, columns=["groupname", *_flat(sample)])

    def _sample(self, now: float) -> dict[str, PartScore]:
        """Scores of nobody, for the columns that they take."""
        return visible(self.scorer.scores({}), self.parts(now))

    def scores(self) -> dict[str, Any]:
        now = self.clock()
        return {"contest": self.contest(now), "submissions": self.submission_records(now)}

    def submission_records(self, now: float) -> list[dict[str, Any]]:
        return [
            {"groupname": name, **_submission_record(submission)}
            for name, submission in self.all_submissions(now)
        ]


def visible(scores: dict[str, PartScore], parts: list[str]) -> dict[str, PartScore]:
    return {part: scores[part] for part in parts if part in scores}


def ranked(standings: list[Standing], parts: list[str]) -> list[Row]:
    seen = [(standing, visible(standing.counted.scores, parts)) for standing in standings]
    seen.sort(key=lambda pair: (-_first(pair[1]).score, pair[0].counted.received, pair[0].name))
    rows: list[Row] = []
    for place, (standing, scores) in enumerate(seen, 1):
        tied = bool(rows) and rows[-1].score.score == _first(scores).score
        rows.append(
            Row(
                rows[-1].rank if tied else place,
                standing.group_id,
                standing.name,
                scores,
                standing.count,
                standing.last,
                standing.counted.number,
                standing.counted.received,
            )
        )
    return rows


def _first(scores: dict[str, PartScore]) -> PartScore:
    return next(iter(scores.values()))


def _score_record(score: PartScore) -> dict[str, Any]:
    interval = None if score.low is None else [score.low, score.high]
    return {"score": score.score, "interval": interval, "metrics": score.metrics}


def _row_record(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "groupname": row.name,
        "group": row.group_id,
        **_score_record(row.score),
        "parts": {part: _score_record(score) for part, score in row.scores.items()},
        "submissions": row.count,
        "last": iso(row.last),
        "counted": row.counted,
        "counted_at": iso(row.counted_at),
    }


def _submission_record(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.id,
        "number": submission.number,
        "received": iso(submission.received),
        "sha256": submission.sha256,
        "parts": {part: _score_record(score) for part, score in submission.scores.items()},
    }


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """One level: part_score, part_low, part_high and part_<metric> for each part."""
    flat = {
        key: value
        for key, value in record.items()
        if key not in ("parts", "score", "interval", "metrics")
    }
    for part, score in record["parts"].items():
        low, high = score["interval"] or (None, None)
        flat |= {f"{part}_score": score["score"], f"{part}_low": low, f"{part}_high": high}
        flat |= {f"{part}_{name}": value for name, value in score["metrics"].items()}
    return flat
