"""A submission → a contest server's answer. Knows the protocol, nothing of how it is scored.

`POST {"groupname": …, "images": {query: [gallery id, …]}}`; the answer is JSON with `accuracy`.
A submission is sent again only while it cannot have counted: when no connection came about, or
after a 5xx answer. Once the request is out, silence may mean that it was stored, so it is final.
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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from vizsla import storage
from vizsla.errors import DataError, SubmitError, UsageError
from vizsla.output.submission import as_lists, read_submission, require_sound, submission_sha256
from vizsla.output.submission_forms import Lists
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.submit")

MAX_ANSWER = 4 * 2**20  # bytes
MAX_REDIRECTS = 3
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.WriteError, httpx.WriteTimeout)
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After may ask for between two tries


@dataclass(frozen=True)
class Receipt:
    """What was sent, and what came back. accuracy is None after a dry run only, which may lack a
    url as well.

    metrics: the other numbers of the answer. answer: all of it. sha256: of the lists
    (`submission_sha256`), not of the request. sent_at: UTC, when the answer came.
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
    waits: Sequence[float] = (1.0, 4.0),
    dry_run: bool = False,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    k: int | None = None,
) -> Receipt:
    """Posts a ranking to a contest server; the Receipt holds its score.

    results: a Ranking, {query: [gallery id, …]} or the path of a submission file of any form.
    url and token may come from VIZSLA_SUBMIT_URL and VIZSLA_SUBMIT_TOKEN. waits: seconds before
    each further try. queries, gallery, k: what to check the lists against before anything is sent.
    SubmitError says in one line why there is no score.
    """
    lists = _lists(results, k)
    require_sound(lists, queries=queries, gallery=gallery, k=k, what="the submission")
    if not isinstance(groupname, str) or not groupname.strip():
        raise UsageError("the name of the group is empty: give the one that the contest knows")
    if timeout <= 0:
        raise UsageError(f"timeout={timeout:g}: expected seconds above 0")
    unnamed = dry_run and not (url or os.environ.get("VIZSLA_SUBMIT_URL"))
    target = None if unnamed else _target(url)
    headers = _headers(token or os.environ.get("VIZSLA_SUBMIT_TOKEN"))
    body = json.dumps({"groupname": groupname, "images": lists}).encode()
    shown = None if target is None else _shown_url(target)
    receipt = Receipt(groupname, shown, len(lists), len(body), submission_sha256(lists))
    if dry_run or target is None:
        return receipt
    reply = _post_with_tries(target, body, headers, timeout, waits)
    answer = _answer(reply, target)
    numbers = {key: value for key, value in answer.items() if _is_number(value)}
    accuracy = float(numbers.pop("accuracy"))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return replace(receipt, accuracy=accuracy, metrics=numbers, answer=answer, sent_at=now)


def _lists(results: Ranking | Mapping[str, Any] | str | Path, k: int | None) -> Lists:
    if isinstance(results, str | Path):
        return read_submission(results).to_lists()
    return as_lists(results, k=k)


def record_submission(run_folder: str | Path, receipt: Receipt) -> Path:
    """Adds the receipt as one line to <run folder>/submissions.jsonl; the path of that file."""
    if receipt.sent_at is None:
        raise UsageError("a dry run sends nothing, so there is nothing to record")
    folder = Path(run_folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected runs/20260131-235959-0a1b or the like")
    path = folder / "submissions.jsonl"
    before = storage.read_bytes(path) if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    line = json.dumps(asdict(receipt), allow_nan=False)
    storage.write_bytes(path, before + line.encode() + b"\n")
    return path


# ── the address ──────────────────────────────────────────────────────────────────────────────────


def _target(url: str | None) -> httpx.URL:
    url = url or os.environ.get("VIZSLA_SUBMIT_URL")
    if not url:
        raise UsageError("no server to send to: give --url (url=…), or set VIZSLA_SUBMIT_URL")
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
            raise UsageError("the token holds a space or a character that is not ASCII")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _shown_url(url: httpx.URL) -> str:
    """Without user name and password: it is logged and kept."""
    return str(url.copy_with(username=None, password=None)) if url.userinfo else str(url)


def _same_server(old: httpx.URL, new: httpx.URL) -> bool:
    """A redirect may stay where it is, or go from http to https on the same host."""
    if new.host != old.host:
        return False
    secured = old.scheme == "http" and new.scheme == "https"
    return secured or (new.scheme == old.scheme and new.port == old.port)


# ── sending ──────────────────────────────────────────────────────────────────────────────────────


def _post_with_tries(
    target: httpx.URL, body: bytes, headers: dict[str, str], timeout: float, waits: Sequence[float]
) -> Reply:
    """The first answer below 500. SubmitError when the tries are used up."""
    tries = len(waits) + 1
    for number, wait in enumerate([*waits, None], 1):
        asked = 0.0
        try:
            reply = _post(target, body, headers, timeout)
        except NOT_SENT as error:
            problem, hopeless = _connection_problem(error, target, timeout)
        else:
            if reply.status < 500:
                return reply
            problem = f"{target.host} answered {_status(reply.status)}{_said(reply)}"
            asked = _retry_after(reply) or 0.0
            hopeless = asked > LONGEST_WAIT
        if hopeless or wait is None:
            again = f" ({number} tries)" if number > 1 else ""
            raise SubmitError(problem + again + (f"; {_when(asked)}" if asked else ""))
        wait = max(wait, asked)
        log.warning("%s; try %d of %d in %g s", problem, number + 1, tries, wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _post(target: httpx.URL, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
    """One request, with the redirects that stay on the server. Connection errors pass through."""
    url = target
    try:
        with httpx.Client(timeout=timeout, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("POST", url, content=body, headers=headers) as response:
                    if not response.has_redirect_location:
                        content = _read(response, target, time.monotonic() + timeout)
                        return Reply(response.status_code, response.headers, content)
                    url = _redirected(url, response)
    except NOT_SENT:
        raise
    except httpx.ReadTimeout as error:
        raise SubmitError(_silence(target, timeout)) from error
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise SubmitError(
            f"{target.host} gave no answer that can be read ({error}). "
            "The submission may have been counted: look before you send it again"
        ) from error
    except httpx.ProxyError as error:
        raise SubmitError(
            f"the proxy does not let it through ({error}): check HTTP_PROXY and NO_PROXY"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise SubmitError(f"cannot send to {_shown_url(target)}: {error}") from error
    raise SubmitError(f"{target.host} redirects in a circle, lastly to {_shown_url(url)}")


def _read(response: httpx.Response, target: httpx.URL, until: float) -> bytes:
    """The answer's body, within a time and a size."""
    content = b""
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise SubmitError(
                f"{target.host} answers with more than {MAX_ANSWER >> 20} MB: "
                "that is no contest server's answer. Is the URL right?"
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


def _connection_problem(
    error: httpx.TransportError, target: httpx.URL, timeout: float
) -> tuple[str, bool]:
    """(why there is no connection, whether another try is useless)."""
    where = f"{target.host}:{target.port or (443 if target.scheme == 'https' else 80)}"
    if isinstance(error, httpx.ConnectTimeout | httpx.WriteTimeout):
        return f"{where} did not take the submission within {timeout:g} s", False
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_problem(cause, target), True
        if isinstance(cause, ssl.SSLError):
            return f"{where} does not speak TLS as it should ({cause.reason}): is it http://?", True
        if isinstance(cause, socket.gaierror):
            unknown = cause.errno != socket.EAI_AGAIN
            advice = "check the spelling, and whether this network can reach it"
            return f"the host {target.host} is not known ({cause.strerror}): {advice}", unknown
        if isinstance(cause, ConnectionRefusedError):
            return f"{where} refuses the connection: is the server running, the port right?", False
    reason = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), str(error))
    return f"no connection to {where} ({reason})", False


def _certificate_problem(error: ssl.SSLCertVerificationError, target: httpx.URL) -> str:
    expired = error.verify_code == 10  # X509_V_ERR_CERT_HAS_EXPIRED
    if expired:
        return f"the certificate of {target.host} has expired: nothing was sent. Tell its organiser"
    return (
        f"the certificate of {target.host} cannot be trusted ({error.verify_message}): nothing was "
        "sent. For a certificate of your own, name its file in SSL_CERT_FILE"
    )


def _causes(error: BaseException | None) -> "list[BaseException]":
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _silence(target: httpx.URL, timeout: float) -> str:
    return (
        f"{target.host} took the submission, but did not answer within {timeout:g} s. It may have "
        "been counted: look before you send it again, and give it more time (timeout)"
    )


# ── the answer ───────────────────────────────────────────────────────────────────────────────────


def _answer(reply: Reply, target: httpx.URL) -> dict[str, Any]:
    """The JSON of a good answer. SubmitError for all else."""
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
        problem = "holds no accuracy"
    elif not _is_number(answer["accuracy"]):
        problem = "holds an accuracy that is not a number"
    else:
        return answer
    raise SubmitError(f"the answer of {target.host} {problem}: {_one_line(_text(reply))}")


def _refusal(reply: Reply, target: httpx.URL) -> str:
    status, said = _status(reply.status), _said(reply)
    later = _retry_after(reply)
    when = f"; {_when(later)}" if later is not None else ""
    host = target.host
    return {
        401: f"{host} wants a token, or another one ({status}){said}: "
        "give --token (token=…), or set VIZSLA_SUBMIT_TOKEN",
        403: f"{host} does not accept this submission ({status}){said}",
        404: f"there is nothing at {_shown_url(target)} ({status}){said}: is the URL right?",
        405: f"{_shown_url(target)} takes no submissions ({status}){said}: is the URL right?",
        413: f"the submission is too large for {host} ({status}){said}",
        429: f"{host} has had too many submissions of this group ({status}){said}{when}",
    }.get(reply.status, f"{host} refuses the submission ({status}){said}")


def _status(status: int) -> str:
    try:
        return f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _said(reply: Reply) -> str:
    """What the server gives as its reason: `: …`, or nothing."""
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
        said = answer[keys[0]] if keys else answer
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return f": {_one_line(text)}" if text.strip() else ""


def _page_title(reply: Reply) -> str | None:
    """None unless the answer is HTML; then its title in quotes, or an empty text."""
    text = _text(reply)
    if "html" not in reply.headers.get("content-type", "") and not text.lstrip().startswith("<"):
        return None
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    return f" “{_one_line(html.unescape(title[1]))}”" if title and title[1].strip() else ""


def _text(reply: Reply) -> str:
    return reply.body[:20_000].decode(errors="replace")


def _one_line(text: str) -> str:
    """At most 300 printable characters: the server's words end up on a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


def _finite(digits: str) -> float | None:
    """JSON's numbers; what is none (NaN, 1e999) is unknown."""
    value = float(digits)
    return value if math.isfinite(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _retry_after(reply: Reply) -> float | None:
    """Seconds, from either form of the header."""
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
