"""What a command is pointed at: the embedder."""

import dataclasses
from pathlib import Path

import pytest

from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder, recorded_embedder
from vizsla.options import ModelChoice


def test_interpolation_is_part_of_the_model_and_of_its_folder(tmp_path: Path) -> None:
    plain = load_embedder(ModelChoice(model="tiny", weights="random"))
    bilinear = load_embedder(ModelChoice(model="tiny", weights="random", interpolation="bilinear"))
    assert plain.preprocess.interpolation == "bicubic"
    assert bilinear.preprocess.interpolation == "bilinear"
    assert plain.model_id != bilinear.model_id
    bilinear.save(tmp_path / "saved")
    loaded = Embedder.load(tmp_path / "saved")
    assert loaded.preprocess.interpolation == "bilinear"
    assert loaded.model_id == bilinear.model_id


def test_the_framing_is_part_of_the_model_and_of_its_folder(tmp_path: Path) -> None:
    plain = load_embedder(ModelChoice(model="tiny", weights="random"))
    cover = load_embedder(ModelChoice(model="tiny", weights="random", framing="cover"))
    assert plain.preprocess.framed_as is None and plain.preprocess.resize == 201
    assert cover.preprocess == dataclasses.replace(plain.preprocess, resize=None)
    assert plain.model_id != cover.model_id
    cover.save(tmp_path / "saved")
    loaded = load_embedder(ModelChoice(model=str(tmp_path / "saved")))
    assert loaded.preprocess.framed_as == "cover" and loaded.model_id == cover.model_id
    assert recorded_embedder(cover.source, cover.model_id, "vectors").model_id == cover.model_id
    with pytest.raises(UsageError, match=r"leave out .*framing"):
        load_embedder(ModelChoice(model=str(tmp_path / "saved"), framing="squash"))


def test_interpolation_cannot_be_unknown_or_another_than_a_saved_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose nearest, bilinear, bicubic, lanczos"):
        load_embedder(ModelChoice(model="tiny", weights="random", interpolation="cubic"))
    load_embedder(ModelChoice(model="tiny", weights="random")).save(tmp_path / "saved")
    with pytest.raises(UsageError, match="leave out interpolation"):
        load_embedder(ModelChoice(model=str(tmp_path / "saved"), interpolation="bilinear"))
