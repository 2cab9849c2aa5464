"""fine_tune: options, times, targets, and the commands `run --finetune` and `train`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from vizsla import storage
from vizsla.cli.main import main
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import target_of, training_part
from vizsla.embed import runtime
from vizsla.embed.compute import Compute
from vizsla.embed.converted_runtimes import openvino
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.model_card import Origin
from vizsla.option_fields import seconds
from vizsla.options import TuneConfig
from vizsla.run import pipeline, several_models
from vizsla.run import train as run_train
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.fused_runs import FusionConfig
from vizsla.run.teaching import teacher_of
from vizsla.run.train import train
from vizsla.score.validation_scores import ValidationScores
from vizsla.train import training
from vizsla.train.batch_gradient import Processes
from vizsla.train.selection import Candidate, Selection, TrainResult
from vizsla.train.training import options_given

pytestmark = pytest.mark.usefixtures("short_heads")
FAST = {
    "epochs": 1, "validate_on": "seen-classes", "share": 0.3, "precision": "fp32",
    "learning_rate": 1e-3, "loss": "cross-entropy", "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of coloured noise in the contest's folder layout, with its truth."""
    root, rng = tmp_path_factory.mktemp("tuning") / "data", np.random.default_rng(0)
    rows = ["role,file,label"]
    for label in range(5):
        colour = rng.uniform(50, 200, 3)
        for role, count in (("training", 8), ("query", 2), ("gallery", 3)):
            for i in range(count):
                folder = f"training/c{label}" if role == "training" else f"test/{role}"
                name = f"{label}_{i}.png"
                (root / folder).mkdir(parents=True, exist_ok=True)
                pixels = (colour + rng.normal(0, 40, (48, 48, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / name)
                if role != "training":
                    rows.append(f"{role},{name},c{label}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_times() -> None:
    assert [seconds(t) for t in ("90s", "4m", "1.5h", "2 m")] == [90, 240, 5400, 120]
    for wrong in ("", "soon", "-4m", "0s", "4 days"):
        with pytest.raises(UsageError, match=r"90s, 30m or 1\.5h"):
            seconds(wrong)
    for bare in ("60", "1.5"):
        with pytest.raises(UsageError, match=rf"has no unit: write {bare}s, {bare}m or {bare}h"):
            seconds(bare)


def test_options_by_name() -> None:
    config = TuneConfig.from_options({"loss": "supcon", "validate_on": "seen-classes"})
    assert config.loss == "supcon"
    assert config.validate_on == "seen-classes"
    rates = [
        TuneConfig.from_options({"validate_on": kind, **more}).learning_rate
        for kind in ("auto", "new-classes", "seen-classes")
        for more in ({}, {"learning_rate": 3e-4})
    ]  # fmt: skip
    assert rates == [1e-4, 3e-4, 1e-4, 3e-4, 2e-4, 3e-4]
    with pytest.raises(UsageError, match="no option of training is called lr"):
        TuneConfig.from_options({"lr": 1})


def test_what_is_known_of_the_test_part() -> None:
    query = ImageSet(Path("nowhere"), ["a", "b"])
    target = target_of(query, query, ["x", "y", "x", None])
    assert (target.queries, target.gallery, target.per_class) == (2, 2, 1.5)
    assert target_of(None, None).queries is None
    with pytest.raises(DataError, match="no training folder"):
        training_part(None, "data")


def test_run_finetune_fills_the_keys_of_the_contest(data: Path, tmp_path: Path) -> None:
    config = RunConfig(
        data=str(data), model="tiny", weights="random", image_size=32, top_k=3, figures=0,
        home=str(tmp_path), tuning=FAST,
    )  # fmt: skip
    result = pipeline.run(config)
    record = json.loads(result.result_path.read_text())
    training = record["training"]
    untrained = ("frozen", "centred", "whitened", "discriminant")
    assert record["is_finetuned"] == (training["kept"].split()[0] not in untrained)
    if record["is_finetuned"]:
        assert isinstance(record["final_train_loss"], float)
        assert (record["num_epochs"], record["loss_function"]) == (1, "CrossEntropyLoss")
    else:
        assert record["final_train_loss"] is record["loss_function"] is None
    assert {row["name"] for row in training["candidates"]} >= {"frozen", "average of weights"}
    assert training["options"]["epochs"] == 1 and training["options"]["finetune"] == "last"
    saved = Embedder.load(result.run.folder / "embedder")
    assert saved.model_id == record["model_id"]
    assert (result.run.folder / "training" / "log.jsonl").is_file()
    assert (result.run.folder / "training" / "curve.png").is_file()
    repeated = recorded_config(result.run.folder)
    assert repeated.tuning is not None
    assert repeated.tuning["loss"] == "cross-entropy"
    assert repeated.tuning["precision"] == "fp32"


@pytest.mark.parametrize("finetune", ["head", "none"])
def test_the_summary_of_a_run_says_which_model_it_used(
    finetune: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            ["run", str(data), "--model", "tiny", "--weights", "random", "--image-size", "32",
             "--finetune", finetune, "--validate-on", "seen-classes", "--set", "share=0.3",
             "--figures", "0", "--home", str(tmp_path), "--top-k", "3"]
        )  # fmt: skip
    output = capsys.readouterr().out
    result = next((tmp_path / "results").iterdir())
    record = json.loads(result.read_text())
    training = record["training"]
    fitted = "" if training["kept"] == "frozen" else ", with a projection"
    assert f"the network is unchanged{fitted}; candidates on validation:" in output
    words = " ".join(output.split())
    assert training["verdict"] in words and (finetune == "head" or not fitted)
    validated = ValidationScores.of(record["validation"])
    assert validated is not None and (size := validated.size).startswith("3 draws of ")
    assert f"candidates, by {size} held out of the training images, value: the mean of" in words
    assert ("head: a projection trained with the loss" in words) == (finetune == "head")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "openvino"), ({"budget": 600.0}, "openvino"),
        ({"budget": 60.0}, "torch"), ({"finetune": "head"}, "torch"),
        ({"precision": "bf16"}, "torch"),
    ],
)  # fmt: skip
def test_candidates_are_embedded_by_the_fastest_runtime_where_that_can_pay(
    data: Path, tmp_path: Path, options: dict[str, Any], expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def compute(fastest: str, **more: Any) -> Compute:
        monkeypatch.setattr(training, "fastest_runtime", lambda *arguments, starts: fastest)
        named = {**FAST, "epochs": None, **options, **more}
        return training.candidates_compute(
            ImageSet.from_class_folders(data / "training"),
            Embedder.build("tiny", weights="random", image_size=32),
            TuneConfig.from_options({k: v for k, v in named.items() if v is not None}),
            tmp_path / "out", 100, Processes(),
        )  # fmt: skip

    assert compute("openvino").runtime == expected
    assert compute("torch").runtime == expected  # a training that continues keeps to its choice
    assert compute("torch", replay={"inference": "openvino"}).runtime == "openvino"


def test_a_training_embeds_all_candidates_by_the_runtime_that_it_chose(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet.from_class_folders(data / "training")
    embedder = Embedder.build("tiny", weights="random", image_size=32)
    started: list[str] = []

    def counted(embedder: Embedder, compute: Compute) -> Any:
        started.append(compute.runtime)
        return openvino(embedder, compute)

    monkeypatch.setitem(runtime.START, "openvino", counted)
    monkeypatch.setattr(training, "fastest_runtime", lambda *arguments, starts: "openvino")
    training.fine_tune(images, embedder, TuneConfig.from_options(FAST), tmp_path / "one")
    assert len(started) >= 5  # the frozen model, the end, between, a framing, and to refit


def test_the_same_command_continues_an_interrupted_run(data: Path, tmp_path: Path) -> None:
    config = RunConfig(
        data=str(data), model="tiny", weights="random", image_size=32, top_k=3, figures=0,
        home=str(tmp_path), tuning={**FAST, "finetune": "head"},
    )  # fmt: skip

    def killed(stage: str, done: int, total: int) -> None:
        if stage == "validating heads":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config, killed)
    first = [path.name for path in (tmp_path / "runs").iterdir()]
    result = pipeline.run(config)
    assert [result.run.id] == first
    assert pipeline.run(config).run.id not in first  # that one was finished: a new run


def test_run_without_training_images_says_what_to_do(data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data / "test", tmp_path / "bare" / "test")
    config = RunConfig(
        data=str(tmp_path / "bare"), model="tiny", weights="random", image_size=32, top_k=3,
        home=str(tmp_path), tuning={},
    )  # fmt: skip
    with pytest.raises(DataError, match="run without finetune"):
        pipeline.run(config)


def test_the_train_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = trained(data, tmp_path / "tuned", capsys, "--loss", "arcface", "--json", "-q")
    assert code == 0
    record = json.loads(output)
    assert record["training"]["candidates"][0]["name"] == "frozen"
    assert Embedder.load(record["embedder"]).dim > 0


def result_of(name: str, kept: int, *, closed: bool = False) -> Any:
    """What a training of three candidates gave, the one at `kept` kept."""
    names = ("frozen", name, "whitened")
    candidates = [Candidate(n, np.full(2, 0.5)) for n in names]
    candidates[kept].kept = True
    return TrainResult(
        embedder=cast(Any, None), candidates=candidates, loss_function="CrossEntropyLoss",
        num_classes=4, num_epochs=3, final_train_loss=0.25, steps=9, seconds=1.0, warnings=[],
        folder=Path(), log_path=Path(), precision="fp32", images_per_second=1.0,
        closed_forms=frozenset({"whitened"}),
    )  # fmt: skip


def test_an_origin_records_the_training_that_was_kept() -> None:
    pretrained = Origin.of_weights("pretrained")
    options: dict[str, Any] = {"images": 40, "options": {"loss": "triplet"}, "trained_on": "a"}
    assert result_of("last weights", 0).origin(pretrained, **options) == pretrained
    tuned = result_of("last weights", 1).origin(pretrained, **options)
    assert tuned.is_finetuned and tuned.record()["num_epochs"] == 3
    fitted = result_of("last weights", 2).origin(pretrained, **options)
    assert fitted.is_finetuned is False and fitted.training is not None
    assert fitted.training["kept"] == "whitened" and fitted.record()["loss_function"] is None
    both = result_of("last weights", 2).origin(tuned, images=40, options={}, trained_on="b")
    assert both.is_finetuned and both.training is not None
    assert both.training["kept"] == "last weights → whitened"
    assert both.training["options"] == {"before": {"loss": "triplet"}}
    assert both.training["trained_on"] == ["a", "b"]
    assert both.record()["loss_function"] == "CrossEntropyLoss"
    assert Origin().is_finetuned is None  # an older folder does not say


def test_options_of_a_training_say_what_is_held_out_and_what_is_not_a_default() -> None:
    config = TuneConfig.from_options({"epochs": 3, "seed": 7, "workers": 2, "loss": "triplet"})
    assert options_given(config) == {
        "finetune": "last", "loss": "triplet", "epochs": 3, "validate_on": "auto", "seed": 7,
        "share": None, "split_by": None, "query_domain": None, "gallery_domain": None,
    }  # fmt: skip
    seen = TuneConfig.from_options({"validate_on": "seen-classes"})
    assert "learning_rate" not in options_given(seen)


def test_a_tuned_embedder_records_how_it_was_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its folder, its card and the result of a run; whatever chance says, the head is kept."""

    def head(selection: Selection) -> Candidate:
        return next((c for c in selection.candidates if c.name == "head"), selection.frozen)

    monkeypatch.setattr(Selection, "best", property(head))
    weights = tmp_path / "mine.safetensors"
    save_file(Embedder.build("tiny", weights="random", image_size=32).backbone.network.state_dict(),
              weights)  # fmt: skip
    config = RunConfig(
        data=str(data), model="tiny", weights=str(weights), image_size=32, top_k=3, figures=0,
        home=str(tmp_path), tuning={**FAST, "finetune": "head"},
    )  # fmt: skip
    trained = train(config, tmp_path / "tuned")
    assert trained is not None and trained.is_finetuned
    folder = tmp_path / "tuned" / "embedder"
    found = json.loads((folder / "config.json").read_text())["origin"]
    assert (found["weights"], found["weights_file"]) == ("file", "mine.safetensors")
    card = (folder / "README.md").read_text()
    assert "from the file mine.safetensors" in card and "CrossEntropyLoss" in card
    assert "“head” was kept" in card and " 0 epochs" not in card
    assert "that of mine.safetensors is not known" in card
    run = pipeline.run(replace(config, model=str(folder), weights="pretrained", image_size=None,
                               tuning=None))  # fmt: skip
    record = json.loads(run.result_path.read_text())
    assert record["is_finetuned"] is True and record["loss_function"] == "CrossEntropyLoss"
    assert (record["weights"], record["weights_file"]) == ("file", "mine.safetensors")
    assert record["training"]["options"]["finetune"] == "head"
    assert record["model_id"] == Embedder.load(folder).model_id


def test_an_older_folder_does_not_say_whether_it_was_tuned(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    Embedder.build("tiny", weights="random", image_size=32).save(folder)
    config = storage.read_sealed_json(folder / "config.json")
    del config["origin"]
    storage.write_sealed_json(folder / "config.json", config)
    run = pipeline.run(RunConfig(data=str(data), model=str(folder), top_k=3, figures=0,
                                 home=str(tmp_path)))  # fmt: skip
    record = json.loads(run.result_path.read_text())
    assert record["is_finetuned"] is record["weights"] is None


def head_training(data: Path, out: Path) -> list[str]:
    """The words of a `vizsla train` with a head."""
    return [
        "train", str(data), "-o", str(out), "--model", "tiny", "--weights", "random",
        "--image-size", "32", "--finetune", "head", "--validate-on", "seen-classes",
        "--set", "share=0.3",
    ]  # fmt: skip


def trained(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str, str]:
    """That command: exit code, standard output and error."""
    with pytest.raises(SystemExit) as ended:
        main([*head_training(data, out), *more])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training. Tests read it only, or copy it."""
    out = tmp_path_factory.mktemp("finished") / "tuned"
    with pytest.raises(SystemExit):
        main(head_training(data, out))
    return out


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "tuned"))


def test_each_line_of_a_training_is_printed_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    code, output, errors = trained(data, out, capsys)
    assert code == 0
    assert output.splitlines()[-1] == f"Next: vizsla run {data} --model {out / 'embedder'}"
    both = [line.strip() for line in (output + errors).splitlines() if line.strip()]
    assert sum("head + 0.3 frozen" in line for line in both) == 1
    assert len(set(both)) == len(both)
    code, again, errors = trained(data, out, capsys)
    assert (code, again) == (0, output) and "its model is kept" in errors


def test_a_finished_training_is_not_repeated(
    data: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(own)
    code, _, errors = trained(data, own, capsys, "--loss", "arcface", "--budget", "20s")
    assert code == 2 and "--overwrite" in errors and "budget None there, 20.0 here" in errors
    assert "loss" in errors and len(errors.strip().splitlines()) == 1
    assert trained(data, own, capsys)[0] == 0
    assert state(own) == before
    code, _, _ = trained(data, own, capsys, "--loss", "arcface", "--overwrite")
    assert code == 0 and state(own) != before
    assert trained(data, own, capsys, "--loss", "arcface")[0] == 0
    assert trained(data, own, capsys)[0] == 2


def test_a_finished_training_belongs_to_its_images(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    one, other = sorted((tmp_path / "data/training").rglob("*.*"))[:2]
    other.write_bytes(one.read_bytes())
    code, _, errors = trained(tmp_path / "data", finished, capsys)
    assert code == 2 and "other settings (images)" in errors


def test_a_finished_training_without_its_model_is_done_again(
    data: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "embedder" / "model.safetensors").write_bytes(b"damaged")
    code, _, errors = trained(data, own, capsys)
    assert code == 0 and "is damaged, so it is repeated" in errors
    assert Embedder.load(own / "embedder").dim > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "x", "--loss", "arcface"], "need --finetune"),
        (["run", "x", "--finetune", "full", "--budget", "soon"], "90s, 30m"),
        (["train", "x", "-o", "y", "--budget", "60"], "has no unit: write 60s, 60m or 60h"),
        (["train", "x", "-o", "y", "--set", "budget=60"], "60 has no unit"),
        (["train", "x", "-o", "y", "--set", "speed=3"], "--set"),
        (["show", "--data", "x"], "--augmentations"),
    ],
)
def test_wrong_use_exits_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("option", "words"),
    [(["--finetune", "lst"], "--finetune lst: choose one of"), (["--device", "cuda:99"], "cuda")],
)
def test_impossible_options_are_refused_before_a_model_is_loaded(
    command: str, option: list[str], words: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for room in (pipeline, run_train):
        monkeypatch.setattr(room, "load_embedder", lambda *_, **__: pytest.fail("loaded"))
    more = ["-o", str(tmp_path / "out")] if command == "train" else ["--home", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([command, str(data), *more, *option])
    assert ended.value.code in (1, 2) and words in capsys.readouterr().err


@pytest.mark.parametrize(("epochs", "words"), [(1, ", 1 epoch, "), (2, ", 2 epochs, ")])
def test_one_epoch_is_written_in_the_singular(epochs: int, words: str) -> None:
    assert words in replace(result_of("last weights", 1), num_epochs=epochs).text()


def test_augmentation_sheets(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["show", "--augmentations", "--data", str(data), "-o", str(tmp_path / "sheets")])
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["light.png", "medium.png", "none.png", "strong.png"]
    with Image.open(tmp_path / "sheets" / "strong.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(2**24) or []) > 100


def test_trainings_that_hold_out_the_same_images_share_the_frozen_vectors(
    data: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for name, more in (("one", {}), ("other", {"loss": "triplet"}), ("seed", {"seed": 1})):
        tuning = {**FAST, "finetune": "head", **more}
        config = RunConfig(data=str(data), model="tiny", weights="random", image_size=32,
                           home=str(tmp_path), cache=str(cache), tuning=tuning)  # fmt: skip
        train(config, tmp_path / name)
        expected = 1 if name != "seed" else 2
        assert len(list(cache.glob("*/manifest.json"))) == expected, name


def test_a_model_and_its_vectors_teach_alike(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Embedder.build("tiny", weights="random", image_size=48, seed=5).save(tmp_path / "better")
    Embedder.build("tiny", weights="random", image_size=32).save(tmp_path / "student")
    embed(
        ImageSet.from_class_folders(data / "training"),
        Embedder.load(tmp_path / "better"),
        tmp_path / "vectors",
    )
    student = str(tmp_path / "student")
    options = [f"--set={name}={value}" for name, value in FAST.items() if name != "loss"]
    values = []
    for teacher in ("better", "vectors", "student"):
        name, out = str(tmp_path / teacher), tmp_path / f"by {teacher}"
        with pytest.raises(SystemExit) as ended:
            main(["train", str(data), "--model", student, "--teacher", name, *options,
                  "-o", str(out), "--json"])  # fmt: skip
        printed = capsys.readouterr()
        if teacher == "student":
            assert ended.value.code == 2
            assert f"--teacher {name} is the model that is trained" in printed.err
            break
        assert ended.value.code == 0
        training = json.loads(printed.out)["training"]
        assert training["teacher"]["name"] == name
        values.append([candidate["value"] for candidate in training["candidates"]])
        assert not (out / "teacher").exists()  # only needed to continue
    assert values[0] == values[1]


def test_the_models_of_a_joint_run_teach_together(data: Path, tmp_path: Path) -> None:
    configs = [
        RunConfig(data=str(data), model="tiny", weights="random", image_size=size, figures=0,
                  top_k=3, home=str(tmp_path)) for size in (32, 48)
    ]  # fmt: skip
    joint = several_models.run_models(configs, FusionConfig("concat", whiten="shrunk"))
    config = RunConfig(
        data=str(data), home=str(tmp_path),
        tuning={"teacher": str(joint.run.folder), "finetune": "head"},
    )  # fmt: skip
    teacher = teacher_of(config, tmp_path / "training")
    assert teacher is not None
    gallery = ImageSet.from_folder(data / "test" / "gallery")
    found = teacher.embed(gallery, lambda done, total: None)
    known = Embeddings.open(joint.run.folder / "embeddings" / "gallery")
    assert np.allclose(found.of_images(known.ids).vectors, known.vectors, atol=1e-5)
