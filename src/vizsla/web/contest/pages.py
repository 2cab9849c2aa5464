"""The leaderboard → pages for people. Knows templates and requests, no scoring and no storage."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from vizsla.output.charts import line_chart
from vizsla.web.contest.leaderboard import Leaderboard, LeaderboardRow
from vizsla.web.contest.rules import COUNTS, GROUPS, METRICS, iso
from vizsla.web.contest.scoring import PartScore
from vizsla.web.shell.http import Json
from vizsla.web.shell.templating import templates, wants_page

MOST_ROWS = 1000  # of a table on a page; the CSV and the JSON hold all
MOST_POINTS = 400  # of a chart; the newest of a longer history
NEWEST = 50  # submissions on the organiser's page
METRIC_TITLES = {
    "top_k_accuracy": "Top-{k} accuracy",
    "contest_points": "Contest points",
    "map_at_k": "MAP@{k}",
}
PHASES = {"before": "Not open yet", "open": "Open", "closed": "Closed"}
_PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:_]{1,200}")


class Pages:
    """Renders the pages of one contest."""

    def __init__(self, board: Leaderboard) -> None:
        self.board = board
        self._templates = templates(
            Path(__file__).parent, title=board.rules.title, start_page="leaderboard"
        )
        metric, k = board.rules.metric, board.rules.top_k
        titles = {name: METRIC_TITLES.get(name, name).format(k=k) for name in board.rules.metrics}

        def score(value: float, name: str = metric) -> str:
            return f"{value:.4f}" if METRICS.get(name, 1.0) == 1 else f"{value:.2f}"

        self._templates.filters |= {"score": score, "iso": iso}
        self._templates.globals |= {
            "file_types": ".json,.csv,.txt,.trec,.run",
            "metric_title": titles.pop(metric),
            "more_metrics": titles,
            "rules": board.rules,
            "counts_text": COUNTS[board.rules.counts],
            "groups_text": GROUPS[board.rules.groups],
        }

    def add_to(self, app: FastAPI, organiser: list[Any]) -> None:
        """Adds the routes. organiser: the dependencies of the organiser's page."""

        def group(request: Request) -> Response:
            number = request.path_params["group_id"]
            digits = number.isascii() and number.isdigit() and len(number) < 16
            return self.group(request, int(number) if digits else 0)

        def organiser_page(request: Request) -> Response:
            return self.organiser()

        app.add_route("/", self.leaderboard, methods=["GET"])
        app.add_route("/groups/{group_id}", group, methods=["GET"])
        app.add_api_route(
            "/organiser", organiser_page, dependencies=organiser, include_in_schema=False
        )

    def leaderboard(self, request: Request) -> Response:
        """The start page: all groups by rank, and how to submit."""
        now = self.board.clock()
        rows = self.board.rows(now)
        return self._page(
            "leaderboard.html",
            "",
            now,
            rows=rows[:MOST_ROWS],
            hidden=max(0, len(rows) - MOST_ROWS),
            whiskers=_whiskers(rows[:MOST_ROWS], self.board.rules.highest),
            submissions=sum(row.submissions for row in rows),
            url=_submit_url(request),
        )

    def group(self, request: Request, group_id: int) -> Response:
        """A group's submissions, the newest first, with a chart of their scores."""
        now = self.board.clock()
        row = self.board.row(group_id, now)
        if row is None:
            return self.error(request, 404, "there is no such group", None)
        history = self.board.submissions(now, group_id=group_id)
        part = next(iter(row.parts))
        return self._page(
            "group.html",
            "../",
            now,
            row=row,
            left=self.board.rules.left(*self.board.store.used(now)[row.groupname]),
            history=history[::-1][:MOST_ROWS],
            hidden=max(0, len(history) - MOST_ROWS),
            chart=history_chart(
                f"Scores of {row.groupname} by submission",
                [submission.parts[part] for submission in history],
                self.board.rules.metric,
            ),
        )

    def accepted(self, answer: Mapping[str, Any], now: float) -> Response:
        """What the form answers to a submission. answer: as the API gives it."""
        name = answer["submission"]["groupname"]
        row = next((row for row in self.board.rows(now) if row.groupname == name), None)
        return self._page("sent.html", "", now, answer=answer, row=row)

    def not_accepted(self, status: int, problems: Sequence[str]) -> Response:
        """What the form answers to anything else."""
        now = self.board.clock()
        page = self._page("sent.html", "", now, answer=None, row=None, problems=problems)
        page.status_code = status
        return page

    def organiser(self) -> Response:
        """The organiser's page: groups, downloads, rules, tokens and the newest submissions."""
        now = self.board.clock()
        used = self.board.store.used(now)
        rows = self.board.rows(now)
        return self._page(
            "organiser.html",
            "",
            now,
            rows=rows[:MOST_ROWS],
            whiskers=_whiskers(rows[:MOST_ROWS], self.board.rules.highest),
            left={name: self.board.rules.left(*counts) for name, counts in used.items()},
            groups=len(rows),
            submissions=self.board.store.count(),
            newest=self.board.submissions(now, newest=NEWEST)[::-1],
            tokens=self.board.store.groups_with_token(),
        )

    def error(
        self, request: Request, status: int, message: str, headers: Mapping[str, str] | None
    ) -> Response:
        """A page for browsers, JSON for other clients."""
        if not wants_page(request):
            return Json({"error": message, "problems": [message]}, status, dict(headers or {}))
        depth = max(0, request.url.path.count("/") - 1)
        page = self._templates.get_template("error.html")
        text = page.render(up="../" * depth, status_code=status, message=message)
        return HTMLResponse(text, status, dict(headers or {}))

    def _page(self, name: str, up: str, now: float, **values: Any) -> Response:
        """up: the relative path of the start page, so that links work below any prefix."""
        rules, scorer = self.board.rules, self.board.scorer
        text = self._templates.get_template(name).render(
            up=up,
            phase=rules.phase(now),
            phase_title=PHASES[rules.phase(now)],
            parts=rules.visible_parts(now),
            part_sizes=scorer.part_sizes(),
            queries=len(scorer.queries),
            gallery=len(scorer.gallery),
            **values,
        )
        return HTMLResponse(text)


def history_chart(title: str, scores: Sequence[PartScore], metric: str) -> Markup:
    """The score of each submission, the best so far and the 95 % intervals, as an SVG figure."""
    first = max(0, len(scores) - MOST_POINTS)
    best, steps = max(score.score for score in scores[: first + 1]), []
    for number, score in enumerate(scores[first:], first + 1):
        steps.append((float(number), best))
        best = max(best, score.score)
        steps.append((float(number), best))
    numbered = [(float(n), score) for n, score in enumerate(scores[first:], first + 1)]
    series = {"Score": [(n, score.score) for n, score in numbered], "Best so far": steps}
    for i, name in enumerate(("95 % interval, low", "95 % interval, high")):
        ends = [(n, score.interval[i]) for n, score in numbered if score.interval is not None]
        if ends:
            series[name] = ends
    values = [y for line in series.values() for _, y in line]
    room = max(0.05 * (max(values) - min(values)), METRICS.get(metric, 1.0) / 100)
    y_range = max(0.0, min(values) - room), min(METRICS.get(metric, 1.0), max(values) + room)
    chart = line_chart(title, series, x_name="submission", y_name="score", y_range=y_range)
    return Markup(chart)


def _whiskers(rows: list[LeaderboardRow], largest: float) -> dict[int, dict[str, str]]:
    """By group, where to draw its score and interval: percentages of one common scale."""
    ends = {row.group: row.interval or (row.score, row.score) for row in rows}
    low = min((low for low, _ in ends.values()), default=0.0)
    high = max((high for _, high in ends.values()), default=largest)
    span = max(high - low, largest / 100)
    low, span = low - span * 0.04, span * 1.08

    def at(value: float) -> str:
        return f"{(value - low) / span * 100:.2f}%"

    return {
        row.group: {
            "low": at(ends[row.group][0]),
            "high": at(ends[row.group][1]),
            "score": at(row.score),
        }
        for row in rows
    }


def _submit_url(request: Request) -> str:
    """The URL to post to, by the name under which the browser knows this server."""
    host = request.headers.get("host", "")
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else "http"
    return f"{scheme}://{host if _PLAIN_HOST.fullmatch(host) else 'HOST:PORT'}/retrieval/"
