"""The board → HTML for people. Knows templates and requests, no scoring and no storage."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from vizsla.web.contest.board import Board, Row
from vizsla.web.contest.curve import history_svg, shown_score
from vizsla.web.contest.rules import COUNTS, GROUPS, METRICS, iso
from vizsla.web.contest.scoring import PartScore
from vizsla.web.shell.http import Json
from vizsla.web.shell.templating import templates, wants_page

MOST_ROWS = 1000  # of a table on a page; the rest stands in the CSV
METRIC_TITLES = {
    "top_k_accuracy": "Top-{k} accuracy",
    "contest_points": "Contest points",
    "map_at_k": "MAP@{k}",
}
PHASES = {"before": "Not open yet", "open": "Open", "closed": "Closed"}
_PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:_]{1,200}")


class Pages:
    """Each method renders one page for one request."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._templates = templates(
            Path(__file__).parent, title=board.rules.title, start_page="leaderboard"
        )
        metric, k = board.rules.metric, board.rules.top_k
        self._templates.filters |= {
            "score": lambda value: shown_score(value, metric),
            "moment": lambda seconds: Markup(_moment(seconds)),
        }
        self._templates.globals |= {
            "metric_title": METRIC_TITLES[metric].format(k=k),
            "rules": board.rules,
            "counts_text": COUNTS[board.rules.counts],
            "groups_text": GROUPS[board.rules.groups],
        }

    def leaderboard(self, request: Request) -> Response:
        now = self.board.clock()
        rows = self.board.rows(now)
        return self._page(
            "leaderboard.html",
            "",
            now,
            rows=rows[:MOST_ROWS],
            hidden=max(0, len(rows) - MOST_ROWS),
            whiskers=_whiskers(rows[:MOST_ROWS], METRICS[self.board.rules.metric]),
            submissions=sum(row.count for row in rows),
            url=_submit_url(request),
        )

    def group(self, request: Request, group_id: int) -> Response:
        now = self.board.clock()
        row = self.board.row(group_id, now) if group_id else None
        if row is None:
            return self.error(request, 404, "there is no such group", None)
        history = self.board.history(group_id, now)
        part = self.board.parts(now)[0]
        return self._page(
            "group.html",
            "../",
            now,
            row=row,
            history=history[::-1][:MOST_ROWS],
            hidden=max(0, len(history) - MOST_ROWS),
            curve=Markup(
                history_svg(
                    [submission.scores[part] for submission in history],
                    self.board.rules.metric,
                    f"Scores of {row.name} by submission",
                )
            ),
        )

    def organiser(self, request: Request) -> Response:
        now = self.board.clock()
        rows = self.board.rows(now)
        return self._page(
            "organiser.html",
            "",
            now,
            rows=rows,
            submissions=self.board.store.count(),
            newest=self.board.all_submissions(now, newest=50)[::-1],
            tokens=self.board.store.groups_with_token(),
        )

    def error(
        self, request: Request, status: int, message: str, headers: Mapping[str, str] | None
    ) -> Response:
        """A page for browsers, JSON for all else."""
        if not wants_page(request):
            return Json({"error": message, "problems": [message]}, status, dict(headers or {}))
        depth = max(0, request.url.path.count("/") - 1)
        page = self._templates.get_template("error.html")
        text = page.render(up="../" * depth, status_code=status, message=message)
        return HTMLResponse(text, status, dict(headers or {}))

    def _page(self, name: str, up: str, now: float, **values: Any) -> Response:
        """`up`: the way from the page to the start page, so that it works below any prefix."""
        board = self.board
        sizes, parts = board.scorer.part_sizes(), board.parts(now)
        text = self._templates.get_template(name).render(
            up=up,
            phase=board.rules.phase(now),
            phase_title=PHASES[board.rules.phase(now)],
            parts=parts,
            part_sizes=sizes,
            queries=len(board.scorer.queries),
            gallery=len(board.scorer.gallery),
            **values,
        )
        return HTMLResponse(text)


def _moment(seconds: float) -> str:
    """2026-05-28 12:00 in UTC, for people and for machines."""
    stamp = iso(seconds)
    day, clock = stamp[:10], stamp[11:16]
    title = f"{day} {stamp[11:19]} UTC"
    return (
        f'<time datetime="{stamp}" title="{title}">{day} <span class="clock">{clock}</span></time>'
    )


def _whiskers(rows: list[Row], largest: float) -> dict[int, dict[str, str]]:
    """For each group where to draw its score and interval, in percent of one common scale."""
    ends = [end for row in rows for end in _ends(row.score)]
    low, high = min(ends, default=0.0), max(ends, default=largest)
    span = max(high - low, largest / 100)
    low, span = low - span * 0.04, span * 1.08

    def at(value: float) -> str:
        return f"{(value - low) / span * 100:.2f}%"

    drawn = {}
    for row in rows:
        left, right = _ends(row.score)
        drawn[row.group_id] = {"low": at(left), "high": at(right), "score": at(row.score.score)}
    return drawn


def _ends(score: PartScore) -> tuple[float, float]:
    if score.low is None or score.high is None:
        return score.score, score.score
    return score.low, score.high


def _submit_url(request: Request) -> str:
    """The address to post to, as the browser knows this server."""
    host = request.headers.get("host", "")
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else "http"
    return f"{scheme}://{host if _PLAIN_HOST.fullmatch(host) else 'HOST:PORT'}/retrieval/"
