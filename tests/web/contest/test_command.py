"""`vizsla judge` and `vizsla submit` as two processes, as people start them."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vizsla.web.contest.rules import Rules, parse_time
from vizsla.web.contest.store import Store

VIZSLA = str(Path(sys.executable).parent / "vizsla")


def vizsla(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([VIZSLA, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@contextmanager
def served(*words: str, cwd: Path) -> Iterator[str]:
    """A server as its own process, and where it takes submissions."""
    server = subprocess.Popen([VIZSLA, *words], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"http://\S+", line := server.stdout.readline())
        assert found, line
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
        server.stdout.close()


def test_a_contest_from_the_command_line(tmp_path: Path) -> None:
    rows = ["role,file,label"]
    rows += [f"query,q{i}.jpg,{'ab'[i % 2]}" for i in range(4)]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    lists = {f"q{i}.jpg": ["g0.jpg", "g2.jpg"] for i in range(4)}  # right for two of four
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    token = vizsla("judge", "token", "add", "us", cwd=tmp_path).stdout.strip()
    assert vizsla("judge", "token", "list", cwd=tmp_path).stdout.split() == ["us"]
    words = ("judge", "--labels", "labels.csv", "-k", "2", "--port", "0", "--groups", "token")
    with served(*words, cwd=tmp_path) as url:
        hand_in = ("submit", "sub.json", "--group", "us", "--url", url)
        refused = vizsla(*hand_in, cwd=tmp_path)
        assert refused.returncode == 1 and "token" in refused.stderr
        done = vizsla(*hand_in, "--token", token, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["accuracy"] == 0.5, done.stderr
    (tmp_path / "labels.csv").write_text("\n".join(rows).replace("q1.jpg,b", "q1.jpg,a"))
    again = vizsla("judge", "rescore", "--labels", "labels.csv", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["changed"] == 1, again.stderr


def test_the_data_folder_defines_the_images(tmp_path: Path) -> None:
    """--data: a label of no image is an error; a gallery image without a label may be named."""
    for role, n in (("query", 2), ("gallery", 4)):
        (tmp_path / "data/test" / role).mkdir(parents=True)
        for i in range(n):
            (tmp_path / "data/test" / role / f"{role[0]}{i}.jpg").write_bytes(b"")
    rows = ["role,file,label", "query,q0.jpg,a", "query,q1.jpg,b"]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(3)]
    words = ("judge", "--labels", "labels.csv", "--data", "data", "-k", "2", "--port", "0")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "query,gone.jpg,a"]))
    refused = vizsla(*words, cwd=tmp_path)
    assert refused.returncode == 1 and "gone.jpg" in refused.stderr
    assert not (tmp_path / "judge.sqlite").exists()
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    lists = {"q0.jpg": ["g3.jpg", "g0.jpg"], "q1.jpg": ["g3.jpg", "g2.jpg"]}
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    with served(*words, cwd=tmp_path) as url:
        done = vizsla("submit", "sub.json", "--group", "us", "--url", url, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["accuracy"] == 0.5, done.stderr


def test_a_split_is_the_same_after_a_restart(tmp_path: Path) -> None:
    rows = [f"{role},{role[0]}{i}.jpg,{'ab'[i % 2]}" for role in ("query", "gallery")
            for i in range(9)]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(["role,file,label", *rows]))
    seeds = []
    words = ("judge", "--labels", "labels.csv", "-k", "2", "--port", "0", "--public-share", "0.5")
    for _ in range(2):
        with served(*words, "--closes", "2090-01-01T00:00Z", cwd=tmp_path):
            pass
        with Store(tmp_path / "judge.sqlite", create=False) as store:
            seeds.append(Rules.from_json(store.fact("rules") or "").seed)
    assert seeds[0] == seeds[1] and seeds[0] not in (None, 0)


def test_every_rule_reaches_the_contest(tmp_path: Path) -> None:
    rows = ["role,file,label"]
    rows += [f"query,q{i}.jpg,{'ab'[i % 2]}" for i in range(4)]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    with served(
        "judge", "--labels", "labels.csv", "-k", "2", "--port", "0", "--title", "Two words",
        "--metric", "map_at_k", "--public-share", "0.5", "--seed", "3", "--per-hour", "5",
        "--in-all", "9", "--counts", "last", "--opens", "2020-01-01T00:00Z",
        "--closes", "2090-01-01T00:00Z", cwd=tmp_path,
    ):  # fmt: skip
        pass
    with Store(tmp_path / "judge.sqlite", create=False) as store:
        kept = Rules.from_json(store.fact("rules") or "")
    assert kept == Rules(
        title="Two words", top_k=2, metric="map_at_k", public_share=0.5, seed=3, per_hour=5,
        in_all=9, counts="last", opens=parse_time("2020-01-01T00:00Z"),
        closes=parse_time("2090-01-01T00:00Z"),
    )  # fmt: skip
