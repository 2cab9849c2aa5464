"""Messages name flags for whoever types commands, and arguments for whoever calls from Python."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vizsla
from vizsla.cli.main import app
from vizsla.errors import DataError, flags_named
from vizsla.option_fields import seconds


def embeddings(seed: int) -> vizsla.Embeddings:
    return vizsla.Embeddings.from_arrays(np.random.default_rng(seed).normal(size=(3, 4)))


def test_an_error_from_python_names_arguments() -> None:
    with pytest.raises(vizsla.UsageError) as raised:
        vizsla.parse_chain("nonesuch")
    assert str(raised.value).startswith("refine='nonesuch': ")
    with pytest.raises(vizsla.UsageError) as raised:
        vizsla.evaluate_embeddings(np.eye(3))
    assert "too (gallery), or same_set=True if" in str(raised.value)
    with pytest.raises(vizsla.UsageError) as raised:
        seconds("90")
    assert str(raised.value).startswith("budget=90 has no unit")


def test_the_same_error_of_a_command_names_flags(tmp_path: Path) -> None:
    embeddings(0).save(tmp_path / "a.emb")
    words = ["search", str(tmp_path / "a.emb"), str(tmp_path / "a.emb"), "--refine", "nonesuch"]
    raised = CliRunner().invoke(app, words).exception
    assert str(raised).startswith("--refine 'nonesuch': ")


def test_commands_in_a_message_stay_as_they_are_typed() -> None:
    error = DataError("give --weights FILE, or `vizsla models --fetch X` (vizsla embed D --role q)")
    expected = "give weights=FILE, or `vizsla models --fetch X` (vizsla embed D --role q)"
    assert str(error) == expected
    assert str(vizsla.MissingExtraError("--tensorboard", "tensorboard")) == (
        "tensorboard needs an extra: pip install 'vizsla[tensorboard]'"
    )


def test_an_error_of_a_child_process_keeps_its_form() -> None:
    with flags_named():
        error = DataError("choose another folder, or --overwrite")
    assert str(pickle.loads(pickle.dumps(error))) == "choose another folder, or --overwrite"
    assert str(DataError("choose another folder, or --overwrite")).endswith("or overwrite=True")
