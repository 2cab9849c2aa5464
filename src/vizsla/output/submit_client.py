"""A submission → a contest server's answer. Knows the protocol, nothing of how it is scored.

`POST {"groupname": …, "images": {query: [gallery id, …]}}`; the answer is JSON with `accuracy`.
A submission is sent again only while it cannot have been counted: when no connection could be made
(httpx's transport tries again), or after HTTP 503, which means that the server did not handle the
request. Every other failure is final, since the submission may have been stored.
"""

import datetime
import email.utils
import html
import http
import json
import logging
import math
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from vizsla import storage
from vizsla.errors import DataError, SubmitError, UsageError
from vizsla.output.submission import (
    as_lists,
    read_submission,
    require_valid,
    submission_sha256,
    with_names_of,
)
from vizsla.search.ranking import Ranking
from vizsla.workspace import SUBMITTED

log = logging.getLogger("vizsla.submit")

MAX_ANSWER = 4 * 2**20  # bytes
MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0  # for one connection; `timeout` is for the upload and the answer
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After may ask for
X509_V_ERR_CERT_HAS_EXPIRED = 10  # OpenSSL's
MAY_COUNT = "The submission may have been counted: check before you send it again"


@dataclass(frozen=True)
class Receipt:
    """What was sent, and what the server answered.

    url: None if a dry run had none. accuracy, sent_at: None after a dry run. metrics: the other
    numbers in the answer. answer: all of it. sha256: of the lists (`submission_sha256`), not of the
    request. sent_at: the time of the answer, in UTC.
    """

    groupname: str
    url: str | None
    queries: int
    bytes: int
    sha256: str
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    sent_at: str | None = None


@dataclass(frozen=True)
class Reply:
    """An HTTP response, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes


def submit(
    results: Ranking | Mapping[str, Sequence[str]] | str | Path,
    groupname: str,
    url: str | None = None,
    *,
    token: str | None = None,
    timeout: float = 30.0,
    retries: int = 3,
    dry_run: bool = False,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    k: int | None = None,
) -> Receipt:
    """Posts a ranking to a contest server; the Receipt with its score.

    results: a Ranking, {query: [gallery id, …]} or the path of a submission file of any format.
    url and token default to VIZSLA_SUBMIT_URL and VIZSLA_SUBMIT_TOKEN. timeout: seconds. retries:
    further attempts while the submission cannot have been counted. queries, gallery, k: as in
    `check_submission`, checked before anything is sent.
    SubmitError gives the reason in one line.
    """
    if isinstance(results, str | Path):
        lists = read_submission(results).to_lists()
    else:
        lists = as_lists(results, k=k)
    lists = with_names_of(lists, queries, gallery, origin="the submission")
    require_valid(lists, queries=queries, gallery=gallery, k=k, what="the submission")
    if not isinstance(groupname, str) or not groupname.strip():
        raise UsageError("the group's name is empty: give the one registered with the contest")
    if timeout <= 0:
        raise UsageError(f"timeout={timeout:g}: expected seconds above 0")
    if retries < 0:
        raise UsageError(f"retries={retries}: expected 0 or more")
    url = url or os.environ.get("VIZSLA_SUBMIT_URL")
    target = None if dry_run and not url else _target(url)
    headers = _headers(token or os.environ.get("VIZSLA_SUBMIT_TOKEN"))
    body = json.dumps({"groupname": groupname, "images": lists}).encode()
    shown = None if target is None else _shown_url(target)
    receipt = Receipt(groupname, shown, len(lists), len(body), submission_sha256(lists))
    if dry_run or target is None:
        return receipt
    answer = _answer(_post(target, body, headers, timeout, retries), target)
    numbers = {key: value for key, value in answer.items() if _is_number(value)}
    accuracy = float(numbers.pop("accuracy"))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return replace(receipt, accuracy=accuracy, metrics=numbers, answer=answer, sent_at=now)


def record_submission(run_folder: str | Path, receipt: Receipt) -> Path:
    """Appends the receipt to <run folder>/submissions.jsonl; returns the path of that file."""
    if receipt.sent_at is None:
        raise UsageError("a dry run sends nothing, so there is nothing to record")
    folder = Path(run_folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected runs/20260131-235959-0a1b or the like")
    path = folder / SUBMITTED
    before = storage.read_bytes(path) if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    line = json.dumps(asdict(receipt), allow_nan=False)
    storage.write_bytes(path, before + line.encode() + b"\n")
    return path


def score_lines(receipt: Receipt) -> list[str]:
    """What the server answered, for a terminal: which metric on which part, rank, and what is left.

    Of a server that answers less, what there is.
    """
    answer = receipt.answer

    def of(name: str, kind: type = dict) -> Any:
        found = answer.get(name)
        return found if isinstance(found, kind) else kind()

    sent, left, place = of("submission"), of("left"), of("leaderboard")
    metric = of("metric", str)
    scores = {"accuracy": receipt.accuracy, **receipt.metrics}
    scores |= {name: value for name, value in of("metrics").items() if isinstance(value, float)}
    rows = [(name, f"{value:g}") for name, value in scores.items() if name != metric or not metric]
    if metric:
        part, queries = of("part", str), sent.get("queries")
        on = f" on {'all' if part == 'all' else f'the {part}'} {queries} queries" if queries else ""
        ends = of("interval", list)
        within = f" (95 % interval {ends[0]:g} to {ends[1]:g})" if len(ends) == 2 else ""
        rows = [(metric, f"{receipt.accuracy:g}{on}{within}"), *rows[1:]]
    if place.get("rank"):
        groups = place.get("groups")
        rows.append(("rank", f"{place['rank']} of {groups} group{'s' if groups != 1 else ''}"))
    if left:
        words = {"this_hour": "this hour", "in_all": "in total"}
        known = [f"{left[n]} {text}" for n, text in words.items() if left.get(n) is not None]
        rows.append(("submissions left", ", ".join(known) or "no limit"))
    if sent.get("repeated"):
        rows.append(("sent before", f"as submission {sent.get('number')}: this cost nothing"))
    return [f"{_one_line(name):<20} {_one_line(text)}" for name, text in rows]


# ── the address ──────────────────────────────────────────────────────────────────────────────────


def _target(url: str | None) -> httpx.URL:
    if not url:
        raise UsageError("no server to send to: give --url, or set VIZSLA_SUBMIT_URL")
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is not a URL ({error})") from error
    if target.scheme not in ("http", "https") or not target.host:
        raise UsageError(f"{url!r} is not a web address: expected http://… or https://…")
    return target


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        if not re.fullmatch(r"[!-~]+", token):
            raise UsageError("the token holds a space or a non-ASCII character")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _shown_url(url: httpx.URL) -> str:
    """Without user name and password, since it is logged and stored."""
    return str(url.copy_with(username=None, password=None)) if url.userinfo else str(url)


def _same_server(old: httpx.URL, new: httpx.URL) -> bool:
    """Whether a redirect stays on the host and port, or goes from http to https on the host."""
    if new.host != old.host:
        return False
    secured = old.scheme == "http" and new.scheme == "https"
    return secured or (new.scheme == old.scheme and new.port == old.port)


# ── sending ──────────────────────────────────────────────────────────────────────────────────────


def _post(
    target: httpx.URL, body: bytes, headers: dict[str, str], timeout: float, retries: int
) -> Reply:
    """The first answer other than 503. Raises SubmitError if there is none."""
    limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
    transport = httpx.HTTPTransport(proxy=_proxy(target), retries=retries)
    with httpx.Client(transport=transport, timeout=limits) as client:
        for attempt in range(retries + 1):
            reply = _send(client, target, body, headers, timeout)
            if reply.status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                return reply
            problem = f"{target.host} answered {_status(503)}{_reason(reply)}"
            wait = max(2.0**attempt, _retry_after(reply) or 0.0)
            if attempt == retries or wait > LONGEST_WAIT:
                raise SubmitError(f"{problem}; {_when(wait)}")
            log.warning("%s; trying again in %g s (%d of %d)", problem, wait, attempt + 1, retries)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _proxy(target: httpx.URL) -> httpx.Proxy | None:
    """The proxy of the environment: a client that is given a transport does not look for one."""
    if urllib.request.proxy_bypass(target.host):
        return None
    proxies = urllib.request.getproxies()
    address = proxies.get(target.scheme) or proxies.get("all")
    if not address:
        return None
    return httpx.Proxy(address if "://" in address else f"http://{address}")


def _send(
    client: httpx.Client, target: httpx.URL, body: bytes, headers: dict[str, str], timeout: float
) -> Reply:
    """The answer to one request, after redirects that stay on the server. Raises SubmitError."""
    url = target
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with client.stream("POST", url, content=body, headers=headers) as response:
                if not response.has_redirect_location:
                    content = _read(response, target, time.monotonic() + timeout)
                    return Reply(response.status_code, response.headers, content)
                url = _redirected(url, response)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise SubmitError(_connection_problem(error, target)) from error
    except (httpx.WriteTimeout, httpx.WriteError) as error:
        reason = error if str(error) else f"it was too slow for a timeout of {timeout:g} s"
        raise SubmitError(f"{target.host} did not take the whole submission: {reason}") from error
    except httpx.ReadTimeout as error:
        raise SubmitError(
            f"{target.host} did not answer within {timeout:g} s. {MAY_COUNT}, "
            "and give it more time (timeout)"
        ) from error
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise SubmitError(f"{target.host} gave no valid answer ({error}). {MAY_COUNT}") from error
    except httpx.ProxyError as error:
        raise SubmitError(
            f"the proxy refuses the connection ({error}): check HTTP_PROXY and NO_PROXY"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise SubmitError(f"cannot send to {_shown_url(target)}: {error}") from error
    raise SubmitError(f"{target.host} redirects in a circle, last to {_shown_url(url)}")


def _read(response: httpx.Response, target: httpx.URL, until: float) -> bytes:
    """The body of the answer, limited in time and size."""
    content = b""
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise SubmitError(
                f"{target.host} answers with more than {MAX_ANSWER >> 20} MB: "
                "that is not a contest server's answer. Is the URL right?"
            )
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the answer does not end")
    return content


def _redirected(old: httpx.URL, response: httpx.Response) -> httpx.URL:
    new = old.join(response.headers["location"])
    if not _same_server(old, new):
        raise SubmitError(
            f"{old.host} redirects to another address, {_shown_url(new)}: nothing was sent there. "
            "If you trust it, give it as the URL"
        )
    if response.status_code not in (307, 308):
        raise SubmitError(f"{old.host} moved to {_shown_url(new)}: give that as the URL")
    return new


def _connection_problem(error: httpx.TransportError, target: httpx.URL) -> str:
    """Why there is no connection."""
    address = f"{target.host}:{target.port or (443 if target.scheme == 'https' else 80)}"
    if isinstance(error, httpx.ConnectTimeout):
        return f"{address} does not answer: is the address right, and can this network reach it?"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code == X509_V_ERR_CERT_HAS_EXPIRED:
                return f"the certificate of {target.host} has expired: nothing was sent"
            return (
                f"the certificate of {target.host} is not trusted ({cause.verify_message}): "
                "nothing was sent. For a certificate of your own, set SSL_CERT_FILE to its file"
            )
        if isinstance(cause, ssl.SSLError):
            return f"{address} does not speak TLS ({cause.reason}): should the URL be http://…?"
        if isinstance(cause, socket.gaierror):
            advice = "check the spelling, and whether this network can reach it"
            return f"the host {target.host} is not known ({cause.strerror}): {advice}"
        if isinstance(cause, ConnectionRefusedError):
            return f"{address} refuses the connection: is the server running, the port right?"
    reason = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), str(error))
    return f"no connection to {address} ({reason})"


# ── the answer ───────────────────────────────────────────────────────────────────────────────────


def _answer(reply: Reply, target: httpx.URL) -> dict[str, Any]:
    """The JSON of a successful answer. Raises SubmitError for any other."""
    if not 200 <= reply.status < 300:
        raise SubmitError(_refusal(reply, target))
    page = _page_title(reply)
    if page is not None:
        raise SubmitError(
            f"{target.host} answered with a web page{page} instead of JSON: is the URL right?"
        )
    try:
        answer = json.loads(reply.body, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise SubmitError(
            f"the answer of {target.host} is not JSON: {_one_line(_text(reply)) or 'it is empty'}"
        ) from None
    if not isinstance(answer, dict) or "accuracy" not in answer:
        problem = "has no accuracy"
    elif not _is_number(answer["accuracy"]):
        problem = "has an accuracy that is not a number"
    else:
        return answer
    raise SubmitError(f"the answer of {target.host} {problem}: {_one_line(_text(reply))}")


def _refusal(reply: Reply, target: httpx.URL) -> str:
    """Why the server gave no score."""
    status, reason = _status(reply.status), _reason(reply)
    later = _retry_after(reply)
    when = f"; {_when(later)}" if later is not None else ""
    host = target.host
    if reply.status >= 500:
        return f"{host} failed ({status}){reason}. {MAY_COUNT}"
    return {
        401: f"{host} asks for a token, or for another one ({status}){reason}: "
        "give --token, or set VIZSLA_SUBMIT_TOKEN",
        403: f"{host} does not accept this submission ({status}){reason}",
        404: f"there is nothing at {_shown_url(target)} ({status}){reason}: is the URL right?",
        405: f"{_shown_url(target)} takes no submissions ({status}){reason}: is the URL right?",
        413: f"the submission is too large for {host} ({status}){reason}",
        429: f"this group has made too many submissions to {host} ({status}){reason}{when}",
    }.get(reply.status, f"{host} refuses the submission ({status}){reason}")


def _status(status: int) -> str:
    try:
        return f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _reason(reply: Reply) -> str:
    """The server's reason, as `: …`; empty if it gives none."""
    page = _page_title(reply)
    if page is not None:
        return f": a web page{page}"
    text = _text(reply)
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        keys = [key for key in ("detail", "error", "message") if key in answer]
        found = answer[keys[0]] if keys else answer
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return f": {_one_line(text)}" if text.strip() else ""


def _page_title(reply: Reply) -> str | None:
    """None unless the answer is HTML; then its title in quotes, or an empty string."""
    text = _text(reply)
    if "html" not in reply.headers.get("content-type", "") and not text.lstrip().startswith("<"):
        return None
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    return f" “{_one_line(html.unescape(title[1]))}”" if title and title[1].strip() else ""


def _text(reply: Reply) -> str:
    return reply.body[:20_000].decode(errors="replace")


def _one_line(text: str) -> str:
    """At most 300 printable characters, since the text is shown in a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


def _finite(digits: str) -> float | None:
    """A number of JSON; None for NaN and for what float64 cannot hold."""
    value = float(digits)
    return value if math.isfinite(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _retry_after(reply: Reply) -> float | None:
    """The seconds of Retry-After, which is a number or a date; None if it is neither."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - time.time())


def _when(seconds: float) -> str:
    if seconds < 120:
        return f"try again in {math.ceil(seconds)} s"
    return f"try again in {math.ceil(seconds / 60)} minutes"
