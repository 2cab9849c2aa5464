"""`vizsla judge` as a process, as people start it, and `vizsla submit` to it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vizsla.cli.main import main
from vizsla.web.contest.rules import Rules, parse_time
from vizsla.web.contest.store import Store
from vizsla.web.shell import http

VIZSLA = str(Path(sys.executable).parent / "vizsla")


@pytest.fixture
def vizsla(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """vizsla(words…): a command in tmp_path, in this process → (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return ended.value.code, *capsys.readouterr()

    return run


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


def test_a_contest_from_the_command_line(tmp_path: Path, vizsla: Any) -> None:
    rows = ["role,file,label"]
    rows += [f"query,q{i}.jpg,{'ab'[i % 2]}" for i in range(4)]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    lists = {f"q{i}.jpg": ["g0.jpg", "g2.jpg"] for i in range(4)}  # right for two of four
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    token = vizsla("judge", "token", "add", "us")[1].strip()
    assert vizsla("judge", "token", "list")[1].split() == ["us"]
    words = ("judge", "--labels", "labels.csv", "-k", "2", "--port", "0", "--groups", "token")
    with served(*words, cwd=tmp_path) as url:
        hand_in = ("submit", "sub.json", "--group", "us", "--url", url)
        code, _, errors = vizsla(*hand_in)
        assert code == 1 and "token" in errors
        _, answer, errors = vizsla(*hand_in, "--token", token, "--json")
        assert json.loads(answer)["accuracy"] == 0.5, errors
    (tmp_path / "labels.csv").write_text("\n".join(rows).replace("q1.jpg,b", "q1.jpg,a"))
    _, again, errors = vizsla("judge", "rescore", "--labels", "labels.csv", "--json")
    assert json.loads(again)["changed"] == 1, errors


def test_the_data_folder_defines_the_images(tmp_path: Path, vizsla: Any) -> None:
    """--data: a label of no image is an error; a gallery image without a label may be named."""
    for role, n in (("query", 2), ("gallery", 4)):
        (tmp_path / "data/test" / role).mkdir(parents=True)
        for i in range(n):
            (tmp_path / "data/test" / role / f"{role[0]}{i}.jpg").write_bytes(b"")
    rows = ["role,file,label", "query,q0.jpg,a", "query,q1.jpg,b"]
    rows += [f"gallery,g{i}.jpg,{'ab'[i % 2]}" for i in range(3)]
    words = ("judge", "--labels", "labels.csv", "--data", "data", "-k", "2", "--port", "0")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "query,gone.jpg,a"]))
    code, _, errors = vizsla(*words)
    assert code == 1 and "gone.jpg" in errors
    assert not (tmp_path / "judge.sqlite").exists()
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    lists = {"q0.jpg": ["g3.jpg", "g0.jpg"], "q1.jpg": ["g3.jpg", "g2.jpg"]}
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    with served(*words, cwd=tmp_path) as url:
        _, answer, errors = vizsla("submit", "sub.json", "--group", "us", "--url", url, "--json")
        assert json.loads(answer)["accuracy"] == 0.5, errors


@pytest.fixture
def judge(vizsla: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """judge(words…): `vizsla judge`, stopped before the first request → the rules it has kept."""
    monkeypatch.setattr(http, "make_server", lambda app: SimpleNamespace(run=lambda sockets: None))

    def run(*words: str) -> Rules:
        code, _, errors = vizsla("judge", "--labels", "labels.csv", "--port", "0", *words)
        assert code == 0, errors
        with Store(Path("judge.sqlite"), create=False) as store:
            return Rules.from_json(store.fact("rules") or "")

    return run


LABELS = "role,file,label\n" + "".join(
    f"{role},{role[0]}{i}.jpg,{'ab'[i % 2]}\n" for role in ("query", "gallery") for i in range(9)
)


def test_a_split_is_the_same_after_a_restart(tmp_path: Path, judge: Any) -> None:
    (tmp_path / "labels.csv").write_text(LABELS)
    words = ("-k", "2", "--public-share", "0.5", "--closes", "2090-01-01T00:00Z")
    seeds = [judge(*words).seed for _ in range(2)]
    assert seeds[0] == seeds[1] and seeds[0] not in (None, 0)


def test_every_rule_reaches_the_contest(tmp_path: Path, judge: Any) -> None:
    (tmp_path / "labels.csv").write_text(LABELS)
    kept = judge(
        "-k", "2", "--title", "Two words", "--metrics", "map_at_k,P@2", "--public-share", "0.5",
        "--seed", "3", "--per-hour", "5", "--max-submissions", "9", "--counts", "last",
        "--opens", "2020-01-01T00:00Z", "--closes", "2090-01-01T00:00Z",
    )  # fmt: skip
    assert kept == Rules(
        title="Two words", top_k=2, metrics=("map_at_k", "P@2"), public_share=0.5, seed=3,
        per_hour=5, max_submissions=9, counts="last", opens=parse_time("2020-01-01T00:00Z"),
        closes=parse_time("2090-01-01T00:00Z"),
    )  # fmt: skip
