import http.server
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from vizsla.errors import ModelError
from vizsla.model.backbones import build_backbone
from vizsla.model.catalogue import BACKBONES
from vizsla.model.weights import (
    digest_of,
    download,
    fetch,
    load_state,
    read_state,
    seeded,
    traces_of,
)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "W.PTH"])
def test_reads_every_kind_of_file(tmp_path: Path, name: str) -> None:
    state = state_of(network())
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    found = read_state(tmp_path / name)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model_state_dict": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    ],
)
def test_unwraps_what_training_scripts_wrap(tmp_path: Path, wrapped: object) -> None:
    state = state_of(network())
    torch.save(wrapped(state), tmp_path / "w.pt")  # type: ignore[operator]
    assert read_state(tmp_path / "w.pt").keys() == state.keys()


class Mischief:
    """What a pickle can do to who reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"weight": torch.ones(2), "mischief": Mischief(victim)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="more than tensors") as caught:
        read_state(tmp_path / "w.pt")
    assert not victim.exists()
    assert "weights_only" not in str(caught.value)  # no advice to open it anyway


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_a_model_error(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(state_of(network()), path)
    else:
        torch.save(state_of(network()), path)
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "garbage": b"\x07" * 500, "empty": b""}[damage]
    )
    with pytest.raises(ModelError, match=re.escape(str(path))):
        read_state(path)


def test_what_is_no_state_dict_is_a_model_error(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, {}, [torch.ones(1)], torch.ones(3), {"state_dict": {}}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="holds no weights"):
            read_state(tmp_path / "w.pt")


def test_a_missing_file_and_a_wrong_ending_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no weights file .*none\.pt"):
        read_state(tmp_path / "none.pt")
    (tmp_path / "w.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"\.safetensors, \.pt, \.pth"):
        read_state(tmp_path / "w.ckpt")


# ── does it fit? ─────────────────────────────────────────────────────────────────────────────────


def test_missing_unexpected_and_misshapen_are_counted_and_named() -> None:
    target = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    before = state_of(target)
    state = {f"layer{i}": torch.zeros(1) for i in range(7)}
    state["0.weight"], state["0.bias"] = torch.zeros(3, 2), torch.zeros(2)
    with pytest.raises(ModelError) as caught:
        load_state(target, state, origin="some.pt")
    text = str(caught.value)
    assert "some.pt does not fit" in text and "of 8 tensors" in text
    assert "6 missing (1.weight, 1.bias, 2.weight, 2.bias, 3.weight, …)" in text
    assert "7 unexpected (layer0, layer1, layer2, layer3, layer4, …)" in text
    assert "1 of another shape (0.weight is 3×2, expected 2×2)" in text
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_a_classifier_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    target, source = network(), network()
    head = {"fc.weight": torch.ones(9, 4), "fc.bias": torch.ones(9)}
    with caplog.at_level(logging.INFO, "vizsla"):
        load_state(target, {**state_of(source), **head}, heads=("fc",), origin="some.pt")
    assert "fc.weight, fc.bias" in caplog.text
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])
    with pytest.raises(ModelError, match=r"2 unexpected \(fc.weight, fc.bias\)"):
        load_state(target, {**state_of(source), **head}, origin="some.pt")
    with pytest.raises(ModelError, match="1 unexpected"):  # a head's name is not any prefix
        load_state(target, {**state_of(source), "fcx": head["fc.bias"]}, heads=("fc",), origin="f")


def test_a_head_that_the_network_has_is_not_dropped() -> None:
    target, source = nn.ModuleDict({"fc": nn.Linear(2, 2)}), nn.ModuleDict({"fc": nn.Linear(2, 2)})
    load_state(target, state_of(source), heads=("fc",), origin="f")
    assert torch.equal(target["fc"].weight, source["fc"].weight)


def test_counters_of_batch_norm_may_be_missing() -> None:
    state = {k: v for k, v in state_of(network()).items() if "num_batches" not in k}
    load_state(network(), state, origin="f")
    del state["1.running_mean"]
    with pytest.raises(ModelError, match=r"1 missing \(1.running_mean\)"):
        load_state(network(), state, origin="f")


def test_halves_are_taken_into_float32() -> None:
    target, source = network(), network()
    load_state(target, {k: v.half() for k, v in state_of(source).items()}, origin="f")
    assert target.state_dict()["0.weight"].dtype == torch.float32
    assert torch.allclose(
        target.state_dict()["0.weight"], source.state_dict()["0.weight"], atol=1e-3
    )


def test_an_older_form_is_converted_only_where_names_do_not_fit() -> None:
    target, source = network(), network()
    calls = []

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return {name.removeprefix("old."): value for name, value in state.items()}

    load_state(target, state_of(source), origin="f", convert=convert)
    assert not calls
    old = {f"old.{name}": value for name, value in state_of(source).items()}
    load_state(target, old, origin="f", convert=convert)
    assert calls and torch.equal(target.state_dict()["0.bias"], source.state_dict()["0.bias"])
    with pytest.raises(ModelError, match=r"unexpected \(new\.0\.weight"):
        new = {f"new.{name}": value for name, value in state_of(source).items()}
        load_state(target, new, origin="f", convert=convert)


# ── hubs ─────────────────────────────────────────────────────────────────────────────────────────


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
    state = state_of(build_backbone("tiny", "random", seed=seed).network)
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
    assert "--weights FILE" in text and "vizsla models --fetch" in text
    assert ("TORCH_HOME" if name == "googlenet" else "HF_HOME") in text
    assert "HF_HUB_OFFLINE is set" in text


def test_the_environment_variable_is_honoured(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from vizsla.errors import ModelError\n"
        "from vizsla.model.weights import fetch\n"
        "try: fetch('tiny')\n"
        "except ModelError as error: sys.exit(f'{error}')\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": "/nowhere"}
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
    """A real server on loopback in place of the hub: its files by path, and what was asked."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
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
    yield files, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_come_from_the_hub_once(
    hub: tuple[dict[str, bytes], list[str]], tmp_path: Path, file: str
) -> None:
    files, asked = hub
    source = tmp_path / file
    save_file(tiny_state(3), source) if "safe" in file else torch.save(tiny_state(3), source)
    files[f"/timm/resnet10t.c3_in1k/resolve/main/{file}"] = source.read_bytes()
    path = fetch("tiny")
    assert path.read_bytes() == source.read_bytes()
    questions = len(asked)
    assert questions
    built, expected = build_backbone("tiny"), build_backbone("tiny", "random", seed=3)
    assert digest_of(built.state_dict()) == digest_of(expected.state_dict())
    assert len(asked) == questions


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


# ── random numbers and fingerprints ──────────────────────────────────────────────────────────────


def test_seeded_leaves_the_programs_own_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(KeyError), seeded(99):
        first = torch.rand(3)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
    with seeded(99):
        assert torch.equal(torch.rand(3), first)


def test_digests_tell_values_names_and_shapes_apart() -> None:
    state = {"a": torch.arange(4.0), "b": torch.ones(2)}
    digest = digest_of(state)
    assert digest == digest_of({"b": torch.ones(2), "a": torch.arange(4.0)})
    assert digest == digest_of({"a": torch.arange(4.0).bfloat16(), "b": torch.ones(2).half()})
    others = [
        {"a": torch.arange(4.0).view(2, 2), "b": torch.ones(2)},
        {"a": torch.arange(4.0), "c": torch.ones(2)},
        {"a": torch.arange(4.0), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.arange(4.0)},
    ]
    assert digest not in map(digest_of, others)


def test_a_digest_does_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    image = torch.rand(2, 3, 4, 5)
    last = image.to(memory_format=torch.channels_last)
    assert digest_of({"x": image}) == digest_of({"x": last})


@pytest.mark.parametrize("change", ["in place", "data", "numpy", "new"])
def test_traces_show_a_change(change: str) -> None:
    state = {"w": torch.zeros(40)}
    before = traces_of(state)
    assert traces_of(state) == before
    if change == "in place":
        state["w"][1] += 1  # between the sampled values, but counted
    elif change == "data":
        state["w"].data += 1
    elif change == "numpy":
        state["w"].numpy()[:] = 1
    else:
        state["w"] = torch.zeros(40)
    assert traces_of(state) != before


def test_weights_without_values_have_no_digest() -> None:
    with pytest.raises(ModelError, match="meta"):
        digest_of({"w": torch.zeros(2, device="meta")})
