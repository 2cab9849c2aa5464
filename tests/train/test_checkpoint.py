"""Checkpoints: written and read back; a damaged or foreign one does not count."""

from pathlib import Path

import torch

from vizsla.train.checkpoint import (
    generator_states,
    load_state,
    save_state,
    set_generator_states,
)

ID = "one"


def test_a_nested_state_is_read_back(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimiser = torch.optim.AdamW([parameter], 0.1)
    parameter.sum().backward()
    optimiser.step()
    state = {
        "step": 3,
        "losses": [1.5, 2.0],
        "optimiser": optimiser.state_dict(),
        "none": None,
        "whole": torch.arange(3),
        "nested": [{"a": [torch.ones(2)]}, "text", True],
    }
    save_state(tmp_path, state, identity=ID)
    found = load_state(tmp_path, identity=ID)
    assert found["step"] == 3
    assert found["losses"] == [1.5, 2.0]
    assert found["none"] is None
    assert torch.equal(found["nested"][0]["a"][0], torch.ones(2))
    assert found["nested"][1:] == ["text", True]
    again = torch.optim.AdamW([parameter], 0.5)
    again.load_state_dict(found["optimiser"])
    assert again.param_groups[0]["lr"] == 0.1
    assert torch.equal(again.state[parameter]["exp_avg"], optimiser.state[parameter]["exp_avg"])


def test_an_absent_foreign_or_damaged_state_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path, identity=ID) is None
    save_state(tmp_path, {"a": torch.ones(4)}, identity=ID)
    assert load_state(tmp_path, identity="other") is None
    tensors = next(tmp_path.glob("*.safetensors"))
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-1] + b"!")
    assert load_state(tmp_path, identity=ID) is None
    (tmp_path / "state.json").write_text("{")
    assert load_state(tmp_path, identity=ID) is None


def test_a_new_state_never_overwrites_the_tensors_of_the_old(tmp_path: Path) -> None:
    """Killed between the two files, the old JSON still finds its own tensors."""
    save_state(tmp_path, {"a": torch.zeros(2)}, identity=ID)
    old = (tmp_path / "state.json").read_bytes()
    save_state(tmp_path, {"a": torch.ones(2)}, identity=ID)
    assert load_state(tmp_path, identity=ID)["a"].sum() == 2
    (tmp_path / "state.json").write_bytes(old)
    assert load_state(tmp_path, identity=ID)["a"].sum() == 0


def test_generators_continue() -> None:
    states = generator_states()
    first = torch.rand(3)
    set_generator_states(states)
    assert torch.equal(torch.rand(3), first)
