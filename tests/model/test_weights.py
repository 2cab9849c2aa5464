import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vizsla.errors import ModelError
from vizsla.model.weights import (
    change_markers,
    digest_of,
    load_state,
    seeded,
)
from vizsla.model.weights_file import read_state


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
        with pytest.raises(ModelError, match="has no weights"):
            read_state(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no weights file .*none\.pt"):
        read_state(tmp_path / "none.pt")


# ── does it fit? ─────────────────────────────────────────────────────────────────────────────────


def test_missing_unexpected_and_misshapen_are_counted_and_named() -> None:
    target = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    before = state_of(target)
    state = {f"layer{i}": torch.zeros(1) for i in range(7)}
    state["0.weight"], state["0.bias"] = torch.zeros(3, 2), torch.zeros(2)
    with pytest.raises(ModelError) as caught:
        load_state(target, state, origin="some.pt")
    text = str(caught.value)
    assert "some.pt does not match" in text and "of 8 tensors" in text
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


def test_another_form_is_adapted_only_where_names_do_not_fit() -> None:
    target, source = network(), network()
    calls = []

    def adapt(state: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return {name.removeprefix("old-"): value for name, value in state.items()}

    load_state(target, state_of(source), origin="f", adapt=adapt)
    assert not calls
    old = {f"old-{name}": value for name, value in state_of(source).items()}
    load_state(target, old, origin="f", adapt=adapt)
    assert calls and torch.equal(target.state_dict()["0.bias"], source.state_dict()["0.bias"])
    with pytest.raises(ModelError, match=r"unexpected \(new-0\.weight"):
        new = {f"new-{name}": value for name, value in state_of(source).items()}
        load_state(target, new, origin="f", adapt=adapt)


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
    before = change_markers(state)
    assert change_markers(state) == before
    if change == "in place":
        state["w"][1] += 1  # between the sampled values, but counted
    elif change == "data":
        state["w"].data += 1
    elif change == "numpy":
        state["w"].numpy()[:] = 1
    else:
        state["w"] = torch.zeros(40)
    assert change_markers(state) != before


def test_weights_without_values_have_no_digest() -> None:
    with pytest.raises(ModelError, match="meta"):
        digest_of({"w": torch.zeros(2, device="meta")})
