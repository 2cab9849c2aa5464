"""What paths and flags name → rankings, truths, names, engines."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.errors import UsageError

if TYPE_CHECKING:
    from vizsla.model.inference import Compute, Engine
    from vizsla.score.truth import Truth
    from vizsla.search.ranking import Ranking


def text_or_none(path: Path | None) -> str | None:
    return None if path is None else str(path)


def names_in(data: Path | None) -> tuple[list[str] | None, list[str] | None]:
    """The query and gallery names of a data folder, to check a submission against."""
    from vizsla.data.imageset import open_data

    folders = open_data(data) if data else None
    return (folders.query.ids, folders.gallery.ids) if folders else (None, None)


def read_ranking(path: Path) -> "Ranking":
    """From a run's folder, a ranking or a submission in any form."""
    from vizsla.output.submission import read_submission
    from vizsla.runs import is_run, submission_in
    from vizsla.search.ranking import Ranking

    if path.is_dir() or not path.suffix:
        path = path / "ranking.parquet" if is_run(path) else submission_in(path)
    return Ranking.load(path) if path.suffix == ".parquet" else read_submission(path)


@dataclasses.dataclass(frozen=True)
class ToldTruth:
    """What the options say of the truth."""

    labels: Path | None = None
    labels_from: str | None = None
    data: Path | None = None
    qrels: Path | None = None
    query_labels: Path | None = None
    gallery_labels: Path | None = None
    same_set: bool = False

    @property
    def given(self) -> bool:
        return bool(self.labels or self.labels_from or self.data or self.qrels)


def read_truth(ranking: "Ranking", told: ToldTruth) -> "Truth":
    """From --qrels, --labels, --labels-from, or the labels file in --data."""
    from vizsla.data.imageset import open_data
    from vizsla.score.truth import Truth, truth_of_folders

    if told.labels and told.labels_from:
        raise UsageError("--labels and --labels-from exclude each other: give one")
    one_set = told.same_set or bool(ranking.origin.get("same_set"))
    labels = None
    if told.data:
        labels = truth_of_folders(
            open_data(told.data), labels=told.labels, labels_from=told.labels_from, one_set=one_set
        )
    elif told.labels_from:
        labels = Truth.from_pattern(ranking, told.labels_from, one_set=one_set)
    elif told.labels is not None:
        labels = Truth.from_file(told.labels, one_set=one_set)
    if told.qrels is not None:
        return Truth.from_grades(read_grades(told.qrels), labels=labels, one_set=one_set)
    if labels is None:
        raise UsageError(
            "the truth is needed: --labels FILE, --labels-from '{label}_{n}', --qrels FILE, "
            "or --data DATA with a labels.csv in it"
        )
    return labels


def read_grades(path: Path) -> "dict[str, dict[str, int]]":
    from vizsla.output.qrels import read_qrels

    return read_qrels(path)


@contextmanager
def open_engine(
    name: str, address: str | None, **options: Any
) -> "Iterator[tuple[Compute, Engine | None]]":
    """What `embed` computes with, and where. options: those of `resolve_compute`."""
    from vizsla.model import inference

    if name not in ("local", "ray"):
        raise UsageError(f"--engine {name}: choose local or ray")
    if name == "local" and address is not None:
        raise UsageError("--address names a Ray cluster: add --engine ray")
    if name == "local":
        yield inference.resolve_compute(**options), None
        return
    from vizsla.model import ray_engine

    with ray_engine.connected(address) as ray:
        yield ray_engine.resolve_on(ray, **options), ray_engine.ray_engine(ray)
