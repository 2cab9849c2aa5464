"""Stored submissions → what may be shown of them now: ranks, histories and their scores.

The one place that decides which scores are shown. Every score that leaves the server comes from
here, except the answer to a submission, which holds the first part only.
"""

import threading
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, PlainSerializer, WithJsonSchema

from vizsla.web.contest.rules import Phase, iso
from vizsla.web.contest.scoring import PartScore, Scorer
from vizsla.web.contest.store import Standing, Store

Timestamp = Annotated[  # seconds since 1970; in JSON 2026-05-28T12:00:00Z
    float,
    PlainSerializer(iso, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Scores = dict[str, PartScore]  # by part; the part that ranks comes first


class LeaderboardRow(BaseModel):
    """One group. score, interval and metrics are those of the part that ranks.

    submissions: how many it made, the newest at `last`; counted: the number of the one that counts.
    """

    rank: int
    groupname: str
    group: int
    score: float
    interval: tuple[float, float] | None
    metrics: dict[str, float]
    parts: Scores
    submissions: int
    last: Timestamp
    counted: int
    counted_at: Timestamp


class SubmissionRecord(BaseModel):
    """One submission, with the scores that may be shown. number: within its group, from 1."""

    id: int
    groupname: str
    number: int
    received: Timestamp
    sha256: str
    parts: Scores


class ContestRecord(BaseModel):
    """The rules, as far as everyone may know them, and how far the contest is.

    metric: the first of `metrics`, which ranks.
    """

    title: str
    phase: Phase
    metric: str
    metrics: tuple[str, ...]
    top_k: int
    queries: int
    gallery: int
    part: str
    queries_in_part: int
    counts: str
    groups: str
    opens: Timestamp | None
    closes: Timestamp | None
    submissions_per_hour: int | None
    submissions_in_all: int | None


class Leaderboard:
    """What everyone may see of a contest. Safe to use from many threads.

    now: the time of the request, which its handler reads from `clock` once: one answer must not
    show the contest both before and after its closing.
    """

    def __init__(
        self, store: Store, scorer: Scorer, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store, self.scorer, self.clock = store, scorer, clock
        self.rules = scorer.rules
        self._lock = threading.Lock()
        self._cached: tuple[tuple[int, list[str]], list[LeaderboardRow]] | None = None
        self._fresh_until = 0.0

    def rows(self, now: float) -> list[LeaderboardRow]:
        """The groups by rank; equal scores share a rank, the earlier submission first.

        Computed again after a new submission, but for at most a tenth of the time.
        """
        with self._lock:
            parts = self.rules.visible_parts(now)
            state = (self.store.newest(), parts)
            started = time.monotonic()
            if self._cached is not None:
                cached_state, rows = self._cached
                if cached_state == state or (
                    cached_state[1] == parts and started < self._fresh_until
                ):
                    return rows
            standings = self.store.standings(self.rules.parts()[0], self.rules.counts)
            rows = ranked(standings, parts)
            self._cached = (state, rows)
            took = time.monotonic() - started
            self._fresh_until = started + (10 * took if took > 0.05 else 0)
            return rows

    def row(self, group_id: int, now: float) -> LeaderboardRow | None:
        """The row of one group, None if it has made no submission."""
        return next((row for row in self.rows(now) if row.group == group_id), None)

    def submissions(
        self, now: float, *, group_id: int | None = None, newest: int | None = None
    ) -> list[SubmissionRecord]:
        """The submissions of one group or of all, oldest first. newest: the newest n only."""
        parts = self.rules.visible_parts(now)
        return [
            SubmissionRecord(
                id=submission.id,
                groupname=submission.groupname,
                number=submission.number,
                received=submission.received,
                sha256=submission.sha256,
                parts=visible(submission.scores, parts),
            )
            for submission in self.store.history(group_id, newest=newest)
        ]

    def no_scores(self, now: float) -> Scores:
        """The scores of a submission without any right image, which name all parts and metrics."""
        return visible(self.scorer.scores({}), self.rules.visible_parts(now))

    def contest(self, now: float) -> ContestRecord:
        """The rules and the phase of the contest."""
        rules = self.rules
        part = rules.visible_parts(now)[0]
        return ContestRecord(
            title=rules.title,
            phase=rules.phase(now),
            metric=rules.metric,
            metrics=rules.metrics,
            top_k=rules.top_k,
            queries=len(self.scorer.queries),
            gallery=len(self.scorer.gallery),
            part=part,
            queries_in_part=self.scorer.part_sizes()[part],
            counts=rules.counts,
            groups=rules.groups,
            opens=rules.opens,
            closes=rules.closes,
            submissions_per_hour=rules.per_hour,
            submissions_in_all=rules.max_submissions,
        )


def visible(scores: Scores, parts: list[str]) -> Scores:
    """The scores of a submission that may be shown."""
    return {part: scores[part] for part in parts if part in scores}


def ranked(standings: list[Standing], parts: list[str]) -> list[LeaderboardRow]:
    """The leaderboard by the first of `parts`; ties go to the earlier submission, then by name."""
    pairs = [(standing, visible(standing.counted.scores, parts)) for standing in standings]

    def order(pair: tuple[Standing, Scores]) -> tuple[float, float, str]:
        counted = pair[0].counted
        return -pair[1][parts[0]].score, counted.received, counted.groupname

    rows: list[LeaderboardRow] = []
    for place, (standing, scores) in enumerate(sorted(pairs, key=order), 1):
        first = scores[parts[0]]
        tied = bool(rows) and rows[-1].score == first.score
        rows.append(
            LeaderboardRow(
                rank=rows[-1].rank if tied else place,
                groupname=standing.counted.groupname,
                group=standing.group_id,
                score=first.score,
                interval=first.interval,
                metrics=first.metrics,
                parts=scores,
                submissions=standing.count,
                last=standing.last,
                counted=standing.counted.number,
                counted_at=standing.counted.received,
            )
        )
    return rows
