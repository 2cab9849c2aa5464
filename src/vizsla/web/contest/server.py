"""Labels + rules → a contest's server; scoring its submissions again; its groups' tokens.

The commands `vizsla judge`, `vizsla judge rescore` and `vizsla judge token` call this module.
"""

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.errors import DataError, UsageError
from vizsla.score.truth import Truth
from vizsla.web.contest.database import exclusive
from vizsla.web.contest.rules import Rules, group_name
from vizsla.web.contest.scoring import Labels, Lists, PartScore, Scorer
from vizsla.web.contest.store import Store
from vizsla.web.shell.tokens import chosen, hashed, new_token

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("vizsla.judge")

DATABASE = "judge.sqlite"
LEAST_BODY_LIMIT = 2**20  # bytes


def judge(
    labels: str | Path,
    *,
    database: str | Path = DATABASE,
    data: str | Path | None = None,
    rules: Rules | None = None,
    host: str = "127.0.0.1",
    port: int = 3001,
    organiser_token: str | None = None,
    started: Callable[[str, str | None], None] | None = None,
) -> None:
    """Runs the server until SIGINT or SIGTERM; all accepted submissions are then on the disk.

    data: the folder with test/query and test/gallery, to check the labels against.
    organiser_token: None keeps the one in the file; the first start creates one.
    started: is called with the server's URL and the organiser's token, None unless it is new.
    """
    from vizsla.web.shell.http import listen, make_server, url_of

    truth = read_truth(labels, data)
    with listen(host, port) as bound, exclusive(database), Store(database) as store:
        scorer = Scorer(*truth, with_seed(rules or Rules(), store))
        record_scoring_rules(store, scorer)
        organiser_hash, made = _organiser_hash(store, organiser_token)
        app = create_app(store, scorer, organiser_hash=organiser_hash)
        if started is not None:
            started(url_of(bound), made)
        make_server(app).run([bound])


def create_app(
    store: Store,
    scorer: Scorer,
    *,
    organiser_hash: str | None,
    clock: Callable[[], float] = time.time,
    body_limit: int | None = None,
) -> "FastAPI":
    """The ASGI application of a contest.

    organiser_hash: of the organiser's token; None: nobody may see the organiser's pages.
    clock: seconds since 1970. body_limit: bytes of a request; None: enough for any submission.
    """
    from vizsla.web.contest import api
    from vizsla.web.contest.leaderboard import Leaderboard
    from vizsla.web.contest.pages import Pages
    from vizsla.web.shell.app import new_app

    scorer.scores({})  # loads what the first submission would have to wait for
    board = Leaderboard(store, scorer, clock=clock)
    pages = Pages(board)
    organiser = api.organiser_only(organiser_hash)
    app = new_app(
        "Vizsla judge",
        Path(__file__).parent,
        pages.error,
        forms="'self'",
        body_limit=body_limit or max(LEAST_BODY_LIMIT, 2 * scorer.largest_body()),
        method_hint=lambda request: (
            ": submissions are POSTed" if "/retrieval" in request.url.path else ""
        ),
    )
    api.add_submissions(app, board, pages)
    api.add_leaderboard(app, board)
    api.add_organiser_data(app, board, organiser)
    pages.add_to(app, organiser)
    return app


def read_truth(labels: str | Path, data: str | Path | None = None) -> tuple[Labels, Labels]:
    """The labels of the queries and of the gallery, by id. Without roles every name is both.

    data: a folder whose images are the queries and the gallery. Its gallery images without a label
    are wrong for every query. Raises DataError if labels and folder do not match.
    """
    from vizsla.data.data_folders import open_data

    folders = None if data is None else open_data(data)
    images = None if folders is None else (folders.query.ids, folders.gallery.ids)
    truth = Truth.from_file(labels, images=images)
    query, gallery = dict(truth.query), dict(truth.gallery)
    if folders is not None:
        _compare("query", query, set(folders.query.ids), all_labelled=True)
        _compare("gallery", gallery, set(folders.gallery.ids), all_labelled=False)
        gallery = {name: gallery.get(name) for name in folders.gallery.ids}
    unlabelled = sum(label is None for label in query.values())
    if unlabelled:
        log.warning(
            "%d queries have no label: submissions must answer them, but they do not count",
            unlabelled,
        )
    return query, gallery


def with_seed(rules: Rules, store: Store) -> Rules:
    """The rules with a seed for the public part: the given one, the file's, or a new random one.

    It is stored, so that every start splits the queries the same way.
    """
    if rules.public_share is None or rules.seed is not None:
        return rules
    kept = Rules.from_json(store.fact("rules") or "{}").seed
    return dataclasses.replace(rules, seed=secrets.randbits(64) if kept is None else kept)


def record_scoring_rules(store: Store, scorer: Scorer) -> None:
    """Stores which truth and rules the scores are computed with.

    Raises DataError if the file has scores that were computed with others.
    """
    before = store.fact("scored_by")
    if before not in (None, scorer.fingerprint) and store.count():
        raise DataError(
            "the stored submissions were scored with other labels, --top-k, --metrics, "
            "--public-share or --seed: start with those, or run `vizsla judge rescore` first"
        )
    store.write_facts({"scored_by": scorer.fingerprint, "rules": scorer.rules.to_json()})


# ── rescore ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rescored:
    """submissions: how many were scored again; changed: how many of them have another score now.

    misfits: how many contain a name that the new truth lacks, or lack one of its queries.
    """

    submissions: int
    changed: int
    misfits: int


def rescore(
    labels: str | Path,
    *,
    database: str | Path = DATABASE,
    data: str | Path | None = None,
    **changes: Any,
) -> Rescored:
    """Scores every stored submission again, all or none. The server must not be running.

    changes: rules that differ from those in the file (top_k, metrics, public_share, seed); None
    keeps a rule.
    """
    with exclusive(database), Store(database, create=False) as store:
        kept = Rules.from_json(store.fact("rules") or "{}")
        given = {name: value for name, value in changes.items() if value is not None}
        rules = with_seed(dataclasses.replace(kept, **given), store)
        scorer = Scorer(*read_truth(labels, data), rules)
        before = [submission.scores for submission in store.history()]
        misfits = 0

        def score(lists: Lists) -> dict[str, PartScore]:
            nonlocal misfits
            misfits += bool(scorer.problems(lists))
            return scorer.scores(lists)

        facts = {"scored_by": scorer.fingerprint, "rules": rules.to_json()}
        done = store.rescore(score, facts)
        after = [submission.scores for submission in store.history()]
        changed = sum(old != new for old, new in zip(before, after, strict=True))
        return Rescored(done, changed, misfits)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def add_token(name: str, *, database: str | Path = DATABASE) -> str:
    """A new token for a group; an older one is no longer valid. Only its hash is stored."""
    token = new_token()
    with Store(database) as store:
        store.set_token_hash(group_name(name), hashed(token))
    return token


def list_tokens(*, database: str | Path = DATABASE) -> list[str]:
    """The names of the groups that have a token."""
    with Store(database, create=False) as store:
        return store.groups_with_token()


def remove_token(name: str, *, database: str | Path = DATABASE) -> None:
    """Removes a group's token; its submissions stay. Raises UsageError if it has none."""
    with Store(database, create=False) as store:
        name = group_name(name)
        known = store.groups_with_token()
        if name not in known:
            have = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
            raise UsageError(f"{name!r} has no token; groups with a token: {have or 'none'}")
        store.set_token_hash(name, None)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def _organiser_hash(store: Store, token: str | None) -> tuple[str, str | None]:
    """(the hash of the organiser's token, the token if it is new)."""
    known = store.fact("organiser_hash")
    if token is None and known is not None:
        return known, None
    made = new_token() if token is None else None
    new = hashed(made or chosen(token or ""))
    store.write_facts({"organiser_hash": new})
    return new, made


def _compare(
    role: str, labels: dict[str, str | None], images: set[str], *, all_labelled: bool
) -> None:
    """Raises DataError if labels and images differ; all_labelled: every image needs a label."""
    absent = sorted(labels.keys() - images)
    if absent:
        raise DataError(
            f"the labels name {len(absent)} {role} images that are not in the data folder: "
            + _first_few(absent)
        )
    without = sorted(images - labels.keys())
    if without and all_labelled:
        raise DataError(
            f"{len(without)} {role} images of the data folder are not in the labels: "
            + _first_few(without)
        )
    if without:
        log.warning("%d gallery images have no label and count as wrong", len(without))


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
