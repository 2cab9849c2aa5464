"""The contest's server under load: many clients at once, and kills while they post.

    python benchmarks/judge_load.py                 # 32 clients for 60 s, once warm
    python benchmarks/judge_load.py --kills 20      # kill -9 during load, 20 times

Every answer's score is compared with one that is computed here, without the server's code, and
every submission that was answered is looked up in the database afterwards. Needs the extra `web`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import http.client
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

WARM = 80  # answers to a client before the first look at the memory: all bodies, and some again
SERVER = """
import sys
from vizsla.web.contest.server import judge
from vizsla.web.contest.rules import Rules
judge(sys.argv[1], database=sys.argv[2], rules=Rules(top_k=int(sys.argv[3])), port=0,
      organiser_token="a-token-of-the-organiser", started=lambda url, _: print(url, flush=True))
"""


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answer: which body it answers, and what it says."""

    body: int
    id: int
    accuracy: float
    sha256: str
    seconds: float


@dataclasses.dataclass
class Tally:
    """What happened to the requests of all clients."""

    answered: list[Answered] = dataclasses.field(default_factory=list)
    refused: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    broken: int = 0  # connections that broke before an answer came


class Contest:
    """A made-up contest: labels, bodies to post, and the score that each must get."""

    def __init__(self, folder: Path, *, queries: int, k: int, bodies: int, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.labels, self.database, self.k = folder / "labels.csv", folder / "judge.sqlite", k
        gallery = {f"gallery_{i:05d}.jpg": f"class {draw.randrange(50)}" for i in range(5000)}
        wanted = {f"query_{i:05d}.jpg": f"class {draw.randrange(50)}" for i in range(queries)}
        rows = [f"gallery,{name},{label}" for name, label in gallery.items()]
        rows += [f"query,{name},{label}" for name, label in wanted.items()]
        self.labels.write_text("\n".join(["role,file,label", *rows]) + "\n")
        names = list(gallery)
        self.lists = [{query: draw.sample(names, k) for query in wanted} for _ in range(bodies)]
        self.texts = [json.dumps(lists).encode() for lists in self.lists]
        self.scores = [
            sum(any(gallery[name] == wanted[q] for name in row) for q, row in lists.items())
            / queries
            for lists in self.lists
        ]
        self.hashes = [
            hashlib.sha256(
                json.dumps(lists, sort_keys=True, separators=(",", ":")).encode()
            ).hexdigest()
            for lists in self.lists
        ]


@contextlib.contextmanager
def server(contest: Contest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(process, port)."""
    command = [sys.executable, "-c", SERVER]
    arguments = [str(contest.labels), str(contest.database), str(contest.k)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def post_until(
    contest: Contest, port: int, group: str, tally: Tally, stop: threading.Event
) -> None:
    """One client: a submission after the other over one connection.

    Each group sends each body once: the same again is answered, but not stored.
    """
    first = time.time_ns()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in itertools.count():
        if stop.is_set():
            break
        i = number % len(contest.texts)
        name = f"{group}, {first}, {number // len(contest.texts)}"
        head = b'{"groupname": %s, "images": ' % json.dumps(name).encode()
        started = time.perf_counter()
        try:
            connection.request("POST", "/retrieval/", head + contest.texts[i] + b"}")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            tally.broken += 1
            break
        took = time.perf_counter() - started
        if response.status != 200:
            tally.refused.append((response.status, body))
            continue
        answer = json.loads(body)
        stored = answer["submission"]
        tally.answered.append(Answered(i, stored["id"], answer["accuracy"], stored["sha256"], took))
    connection.close()


def run_clients(
    contest: Contest, port: int, tally: Tally, clients: int, stop: threading.Event
) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=post_until, args=(contest, port, f"client {n}", tally, stop))
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    return threads


def wrong_scores(contest: Contest, tally: Tally) -> int:
    return sum(
        one.accuracy != contest.scores[one.body] or one.sha256 != contest.hashes[one.body]
        for one in tally.answered
    )


def lost_submissions(contest: Contest, tally: Tally) -> int:
    """Answered submissions that the database lacks, or holds with other lists or scores."""
    from vizsla.web.contest.store import Store, unpacked

    with Store(contest.database, create=False) as store:
        kept = {one["id"]: (one["sha256"], one["lists"]) for one in store.each()}
        scores = {one.id: one.scores["all"].score for one in store.history()}
    lost = 0
    for one in tally.answered:
        sha256, lists = kept.get(one.id, ("", b""))
        sound = (
            sha256 == one.sha256
            and unpacked(lists) == contest.lists[one.body]
            and scores[one.id] == one.accuracy
        )
        lost += not sound
    return lost


def resident(pid: int) -> float:
    """MiB of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def wait_until_warm(tally: Tally, clients: int, process: subprocess.Popen[str]) -> None:
    """Until each client has had WARM answers on average: all kinds of requests have been made."""
    while len(tally.answered) < WARM * clients and process.poll() is None:
        time.sleep(0.1)


def load(contest: Contest, *, clients: int, seconds: float) -> dict[str, float]:
    tally, stop = Tally(), threading.Event()
    with server(contest) as (process, port):
        started = time.monotonic()
        threads = run_clients(contest, port, tally, clients, stop)
        wait_until_warm(tally, clients, process)
        memory_early = resident(process.pid)
        time.sleep(seconds)
        memory_late = resident(process.pid)
        elapsed = time.monotonic() - started
        stop.set()
        for thread in threads:
            thread.join()
    times = sorted(one.seconds for one in tally.answered)
    return {
        "answered": len(tally.answered),
        "requests_per_second": round(len(tally.answered) / elapsed, 1),
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[int(0.99 * len(times))], 1),
        "slowest_ms": round(1000 * times[-1], 1),
        "refused": len(tally.refused),
        "broken": tally.broken,
        "wrong_scores": wrong_scores(contest, tally),
        "lost": lost_submissions(contest, tally),
        "memory_when_warm_mib": round(memory_early, 1),
        "memory_at_the_end_mib": round(memory_late, 1),
        "memory_growth_percent": round(100 * (memory_late / memory_early - 1), 2),
        "database_mib": round(contest.database.stat().st_size / 2**20, 1),
    }


def kill(contest: Contest, *, times: int, clients: int) -> Iterator[dict[str, float]]:
    """kill -9 while clients post, again and again on one database. What each round found."""
    from vizsla.web.contest.server import rescore

    draw, all_answered = random.Random(1), Tally()
    for number in range(1, times + 1):
        tally, stop = Tally(), threading.Event()
        with server(contest) as (process, port):
            threads = run_clients(contest, port, tally, clients, stop)
            while not tally.answered:
                time.sleep(0.01)
            after = draw.random() * 2
            time.sleep(after)
            process.kill()
            for thread in threads:
                thread.join()
        all_answered.answered += tally.answered
        yield {
            "kill": number,
            "seconds_after_first_answer": round(after, 2),
            "answered": len(tally.answered),
            "refused": len(tally.refused),
            "wrong_scores": wrong_scores(contest, tally),
            "lost_so_far": lost_submissions(contest, all_answered),
        }
    again = rescore(contest.labels, database=contest.database)
    yield {"rescored": again.submissions, "changed": again.changed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="at least 6")
    parser.add_argument("--queries", type=int, default=1500)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 this often instead")
    options = parser.parse_args()
    if options.seconds < 6:
        parser.error("--seconds: at least 6, since memory is first looked at after 5")
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), queries=options.queries, k=options.top_k, bodies=50)
        if options.kills:
            for line in kill(contest, times=options.kills, clients=options.clients):
                print(json.dumps(line), flush=True)
        else:
            print(
                json.dumps(
                    load(contest, clients=options.clients, seconds=options.seconds), indent=1
                )
            )


if __name__ == "__main__":
    main()
