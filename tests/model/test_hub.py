import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from vizsla.cli.main import main
from vizsla.errors import ModelError
from vizsla.model import hub as hubs
from vizsla.model.build import build_backbone
from vizsla.model.catalogue import BACKBONES
from vizsla.model.hub import (
    download,
    fetch,
    library_location,
    require_connection,
    require_weights,
)
from vizsla.model.weights import digest_of, seeded


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, and torch's, in a folder of their own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def offline(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return empty_cache


def put_into_cache(cache: Path, repository: str, file: str, state: dict[str, Tensor]) -> Path:
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / ("0" * 40) / file
    path.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    if file.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def tiny_state(seed: int) -> dict[str, Tensor]:
    """As timm has it on the hub: with the classifier."""
    state = dict(build_backbone("tiny", "random", seed=seed).network.state_dict())
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_need_no_network(offline: Path, file: str) -> None:
    path = put_into_cache(offline, "timm/resnet10t.c3_in1k", file, tiny_state(7))
    assert fetch("tiny") == path
    built, expected = build_backbone("tiny"), build_backbone("tiny", "random", seed=7)
    assert digest_of(built.state_dict()) == digest_of(expected.state_dict())


@pytest.mark.parametrize("name", ["dinov2-s14", "clip-vit-b32", "googlenet", "timm:regnety_002"])
def test_offline_without_cache_the_error_shows_two_ways_out(offline: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_backbone(name)
    text = str(caught.value)
    assert text.startswith(f"cannot get the pretrained weights of {name}")
    assert text.index("model efficientnet-lite0") < text.index("weights=FILE")
    assert "vizsla models --fetch" in text
    assert ("TORCH_HOME" if name == "googlenet" else "HF_HOME") in text
    assert "HF_HUB_OFFLINE is set" in text


def test_the_environment_variable_is_honoured(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from vizsla.errors import ModelError\n"
        "from vizsla.model.hub import fetch\n"
        "try: fetch('tiny')\n"
        "except ModelError as error: sys.exit(f'{error}')\n"
    )
    environment = {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": "/nowhere",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("cannot get the pretrained weights of tiny (timm:resnet10t")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def hub(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """A real server on loopback in place of the hub: its files by path, and what was requested."""
    files: dict[str, bytes] = {}
    requested: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requested.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", f'"{len(content or b"")}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield files, requested
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_come_from_the_hub_once(
    hub: tuple[dict[str, bytes], list[str]], tmp_path: Path, file: str
) -> None:
    files, requested = hub
    source = tmp_path / file
    save_file(tiny_state(3), source) if "safe" in file else torch.save(tiny_state(3), source)
    files[f"/timm/resnet10t.c3_in1k/resolve/main/{file}"] = source.read_bytes()
    path = fetch("tiny")
    assert path.read_bytes() == source.read_bytes()
    questions = len(requested)
    assert questions
    built, expected = build_backbone("tiny"), build_backbone("tiny", "random", seed=3)
    assert digest_of(built.state_dict()) == digest_of(expected.state_dict())
    assert len(requested) == questions


def test_one_that_cannot_be_had_does_not_keep_the_others(
    hub: tuple[dict[str, bytes], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(tiny_state(3), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    hub[0]["/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"] = content
    with pytest.raises(SystemExit) as end:
        main(["models", "--fetch", "resnet18", "tiny"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and out.startswith("tiny: /") and out.count("\n") == 1
    assert "weights of resnet18" in err and "1 of 2 models could not be fetched" in err


def test_a_repository_without_weights_is_named(hub: tuple[dict[str, bytes], list[str]]) -> None:
    with pytest.raises(ModelError, match=r"weights of tiny .*404"):
        fetch("tiny")


def test_googlenet_comes_from_torchs_cache(offline: Path) -> None:
    from torchvision.models import GoogLeNet

    path = offline / "torch" / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    path.parent.mkdir(parents=True)
    with seeded(5):
        torch.save(GoogLeNet(init_weights=False).state_dict(), path)  # auxiliary heads and all
    assert download(BACKBONES["googlenet"]) == path
    built = build_backbone("googlenet").network.state_dict()
    stored = torch.load(path, weights_only=True)
    assert built and all(torch.equal(tensor, stored[name]) for name, tensor in built.items())


# ── no network ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def nobody_listens() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def retries_for_half_a_minute(*args: object, **options: object) -> str:
    raise AssertionError("the hub's client was called")


@pytest.mark.parametrize("name", ["dinov2-s14", "clip-vit-b32"])
@pytest.mark.parametrize("lack", ["name", "refused"])
def test_without_network_the_hub_is_not_tried_and_the_error_is_one_line(
    empty_cache: Path,
    no_proxy: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    lack: str,
) -> None:
    address = nobody_listens() if lack == "refused" else "https://hub.invalid"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", retries_for_half_a_minute)
    with pytest.raises(ModelError) as caught:
        build_backbone(name)
    text = str(caught.value)
    assert text.startswith(f"cannot get the pretrained weights of {name}")
    reason = {"name": "the host hub.invalid is not known", "refused": "refuses the connection"}
    assert "no network connection: " in text
    assert reason[lack] in text or "hub.invalid does not answer" in text
    assert "weights=FILE" in text and f"vizsla models --fetch {name}" in text
    assert "\n" not in text and not caplog.messages


def test_a_silent_server_is_not_waited_for_long(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "CONNECT_TIMEOUT", 0.2)
    answers = threading.Event()
    monkeypatch.setattr(hubs, "_connection_problem", lambda *_: "" if answers.wait(60) else "late")
    with pytest.raises(ModelError, match=r"hub\.invalid does not answer"):
        require_connection("https://hub.invalid")
    answers.set()


@contextmanager
def proxy_that_answers(line: str) -> Iterator[str]:
    """The address of a proxy that answers each request with this line; nothing if it is empty."""
    done = threading.Event()

    def serve(server: socket.socket) -> None:
        while not done.is_set():
            with contextlib.suppress(OSError), server.accept()[0] as request:
                request.recv(4096)
                if line:
                    request.sendall(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode())
                else:
                    done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            with contextlib.suppress(OSError):
                socket.create_connection(server.getsockname(), timeout=5).close()
            thread.join(30)


@pytest.mark.parametrize(
    ("scheme", "answer", "problem"),
    [
        ("http", "200 OK", None),
        ("http", "404 Not Found", None),  # an answer of the hub
        ("https", "403 Forbidden", "the proxy: 403 Forbidden"),
        ("http", "", r"hub\.invalid does not answer"),
    ],
)
def test_behind_a_proxy_it_is_the_answer_that_counts(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch, scheme: str, answer: str, problem: str | None
) -> None:
    monkeypatch.setattr(hubs, "CONNECT_TIMEOUT", 60 if answer else 0.5)
    with proxy_that_answers(answer) as address:
        monkeypatch.setenv(f"{scheme}_proxy", address)
        if problem is None:
            require_connection(f"{scheme}://hub.invalid/some/file")
        else:
            with pytest.raises(ModelError, match=problem):
                require_connection(f"{scheme}://hub.invalid/some/file")


def test_hosts_without_the_proxy_are_asked_themselves(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_that_answers("200 OK") as address:
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "hub.invalid")
        with pytest.raises(ModelError, match=r"hub\.invalid"):
            require_connection("http://hub.invalid/some/file")
    monkeypatch.delenv("no_proxy")
    with pytest.raises(ModelError, match="the proxy: "):
        require_connection("http://hub.invalid/some/file")


# ── before the work starts ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if not spec.package])
def test_the_catalogue_knows_where_weights_are_published(name: str) -> None:
    """Without the libraries, whose import takes seconds, and as they have it."""
    assert hubs._location(BACKBONES[name]) == library_location(BACKBONES[name])


def test_what_needs_no_download_is_never_refused(offline: Path) -> None:
    put_into_cache(offline, "timm/resnet10t.c3_in1k", "model.safetensors", tiny_state(7))
    require_weights("tiny", "pretrained")
    require_weights("efficientnet-lite0", "pretrained")
    require_weights("dinov2-s14", "random")
    require_weights("dinov2-s14", "my.safetensors")
    require_weights(offline, "pretrained")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        require_weights("dinov2-s14", "pretrained")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "."],
        ["run", ".", "--model", "efficientnet-lite0"],
        ["train", ".", "-o", "tuned"],
        ["embed", ".", "-o", "a.emb"],
        ["check", "."],
        ["serve", "."],
        ["export", "-o", "model.onnx"],
    ],
    ids=" ".join,
)
def test_commands_refuse_before_torch_is_imported(tmp_path: Path, words: list[str]) -> None:
    model = ["dinov2-s14"] if words[0] == "export" else ["--model", "dinov2-s14"]
    program = (
        "import sys\n"
        "from vizsla.cli.main import main\n"
        f"try: main({words + model!r})\n"
        "finally: sys.stderr.write(f'torch imported: {\"torch\" in sys.modules}')\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": nobody_listens(), "HF_HOME": str(tmp_path / "hub")}
    environment |= {"no_proxy": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "refuses the connection. Use --model efficientnet-lite0, which needs" in done.stderr
    assert done.stderr.endswith("torch imported: False")
