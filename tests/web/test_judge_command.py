"""`vizsla judge` and `vizsla submit` as two processes, as people start them."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from vizsla.web.judge_rules import Rules, parse_time
from vizsla.web.judge_store import Store

VIZSLA = str(Path(sys.executable).parent / "vizsla")


def vizsla(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([VIZSLA, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_a_contest_from_the_command_line(tmp_path: Path) -> None:
    rows = ["role,file,label"]
    rows += [f"query,q{i}.jpg,{'ab'[i % 2]}" for i in range(4)]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    lists = {f"q{i}.jpg": ["g0.jpg", "g2.jpg"] for i in range(4)}  # right for two of four
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    token = vizsla("judge", "token", "add", "us", cwd=tmp_path).stdout.strip()
    assert vizsla("judge", "token", "list", cwd=tmp_path).stdout.split() == ["us"]
    server = subprocess.Popen(
        [VIZSLA, "judge", "--labels", "labels.csv", "-k", "2", "--port", "0", "--groups", "token"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        url = re.search(r"http://\S+", line)
        assert url, line
        hand_in = ("submit", "sub.json", "--group", "us", "--url", url[0])
        refused = vizsla(*hand_in, cwd=tmp_path)
        assert refused.returncode == 1 and "token" in refused.stderr
        done = vizsla(*hand_in, "--token", token, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["accuracy"] == 0.5, done.stderr
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
        server.stdout.close()
    (tmp_path / "labels.csv").write_text("\n".join(rows).replace("q1.jpg,b", "q1.jpg,a"))
    again = vizsla("judge", "rescore", "--labels", "labels.csv", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["changed"] == 1, again.stderr


def test_every_rule_reaches_the_contest(tmp_path: Path) -> None:
    rows = ["role,file,label"]
    rows += [f"query,q{i}.jpg,{'ab'[i % 2]}" for i in range(4)]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    server = subprocess.Popen(
        [VIZSLA, "judge", "--labels", "labels.csv", "-k", "2", "--port", "0",
         "--title", "Two words",
         "--metric", "map_at_k", "--public-share", "0.5", "--seed", "3", "--per-hour", "5",
         "--in-all", "9", "--counts", "last", "--opens", "2020-01-01T00:00Z",
         "--closes", "2090-01-01T00:00Z"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert "http://" in server.stdout.readline()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        server.stdout.close()
    with Store(tmp_path / "judge.sqlite", create=False) as store:
        kept = Rules.from_json(store.fact("rules") or "")
    assert kept == Rules(
        title="Two words", top_k=2, metric="map_at_k", public_share=0.5, seed=3, per_hour=5,
        in_all=9, counts="last", opens=parse_time("2020-01-01T00:00Z"),
        closes=parse_time("2090-01-01T00:00Z"),
    )  # fmt: skip
