"""A finished run → its truth, other scores, a cut-off, a report."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.data_folders import DataFolders
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.output import query_page, report_page
from vizsla.progress import waiting
from vizsla.run.accepting import CALIBRATION
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.embedding import Progress
from vizsla.run.fused_runs import joint_calibration, members_of, with_joint_evidence
from vizsla.run.inputs import folders_of, truth_in
from vizsla.run.members import Member
from vizsla.score.calibration import SURE, Calibration
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.score.whole_gallery import evaluate_ranked
from vizsla.search.ranking import Ranking
from vizsla.workspace import open_run, ranking_in

log = logging.getLogger("vizsla.run")


def truth_of_run(folder: str | Path) -> Truth | None:
    """The truth that a run was scored with; None if it had none."""
    config = recorded_config(folder)
    return truth_in(config, folders_of(config))


def known_truth_of_run(folder: str | Path) -> Truth:
    """The truth that a run was scored with. DataError if it had none."""
    truth = truth_of_run(folder)
    if truth is None:
        raise DataError(
            f"{folder} has no scores, since no labels were known: give --labels, --labels-from, "
            "--qrels or --data DATA with a labels.csv in it"
        )
    return truth


def data_of_run(folder: str | Path, data: str | Path | None = None) -> DataFolders:
    """The images that a run ranked. data: where they are now. DataError if they are others."""
    folders = folders_of(recorded_config(folder, data=data))
    for role, images in (("query", folders.query), ("gallery", folders.gallery)):
        ranked = Embeddings.open(Path(folder) / "embeddings" / role)
        names = {*ranked.ids, *(name for name, _ in ranked.broken)}
        if names != set(images.ids):
            raise DataError(
                f"{folders.folder} does not hold the images that {folder} ranked: of its "
                f"{len(names)} {role} images {len(names - set(images.ids))} are missing, and "
                f"{len(set(images.ids) - names)} others are there: give the data of that run"
            )
    return folders


def broken_queries(folder: str | Path) -> list[str]:
    """The queries of a run that could not be read, so that nothing was ranked for them."""
    return [name for name, _ in Embeddings.open(Path(folder) / "embeddings" / "query").broken]


def report(
    folder: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    projection: str = "tsne",
    show: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """One self-contained page about a run. data: where its images are now, if they were moved.

    show: columns of the images that stand below their pictures.
    """
    config = _where_images_are(recorded_config(folder), data)
    folders = folders_of(config)
    with waiting(progress, "reading the run"):
        truth = truth_in(config, folders)
        found = report_page.read_run(open_run(folder), folders, truth, show=show)
    page = report_page.report(found, projection=projection, progress=progress)
    storage.write_text(out, page)
    return Path(out)


def queries_page(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | Path | None = None,
    truth: Truth | None = None,
    progress: Progress | None = None,
) -> Path:
    """One self-contained page of all queries of one or two runs. data: where the images are now.

    truth: in place of those that the runs were scored with. Without any truth, the page says which
    queries have another first image, but not what is right.
    """
    if len(folders) not in (1, 2):
        raise UsageError(f"{len(folders)} runs: a page of all queries shows one or two")
    found = []
    for folder in folders:
        images = data_of_run(folder, data)
        config = _where_images_are(recorded_config(folder), data)
        known = truth or truth_in(config, images)
        one = report_page.read_run(open_run(folder), images, known)
        if truth is not None:
            parts = (one.ranking, truth, one.queries, one.gallery)
            one = dataclasses.replace(one, scores=evaluate_ranked(*parts, **config.scoring))
        found.append(one)
    storage.write_text(out, query_page.queries_page(found, progress=progress))
    return Path(out)


def _where_images_are(config: RunConfig, data: str | Path | None) -> RunConfig:
    """The configuration for data that may have moved: a labels file in it has moved with it."""
    if data is None:
        return config
    labels = config.labels if config.labels and Path(config.labels).exists() else None
    return dataclasses.replace(config, data=str(data), labels=labels)


def scoring_of_run(folder: str | Path, **given: Any) -> dict[str, Any]:
    """The options of `evaluate` that a run was scored with, where they are not given.

    Given cut-offs `ks` also replace the run's k: contest points then count all ranks.
    """
    own = recorded_config(folder).scoring
    if "ks" in given:
        own = {key: value for key, value in own.items() if key not in ("ks", "top_k")}
    else:
        log.info(
            "scored as the run was: k %d (later ranks get no contest points), seed %d",
            own["top_k"], own["seed"],
        )  # fmt: skip
    return {**own, **given}


def score_run(folder: str | Path, truth: Truth, **options: Any) -> tuple[Ranking, Truth, Scores]:
    """A run's ranking, the truth, and the scores by it, with the run's own options unless given.

    A ranking that does not hold the whole gallery is completed from the embeddings.
    """
    ranking = Ranking.load(ranking_in(folder))
    parts = (Embeddings.open(Path(folder) / "embeddings" / role) for role in ("query", "gallery"))
    options = scoring_of_run(folder, **options)
    return ranking, truth, evaluate_ranked(ranking, truth, *parts, **options)


def calibrate_run(
    folder: str | Path, *, sure: float = SURE, progress: Progress | None = None
) -> Calibration:
    """The calibration of a run, learned on images that its models have not seen, and kept there.

    A run tuned on its data uses the images that its training held out. The vectors are kept in the
    folders of the models' runs, so that a second call does not embed again.
    """
    members, fusion = members_of(folder)
    members = members or [Member.of(folder)]
    ranking = Ranking.load(ranking_in(folder))
    if ranking.evidence is None:
        roles = ("query", "gallery")
        vectors = [Embeddings.open(Path(folder) / "embeddings" / role) for role in roles]
        ranking = with_joint_evidence(ranking, members, fusion, vectors)
        ranking.save(ranking_in(folder))
    found = joint_calibration(members, fusion, sure, ranking, progress)
    found.save(Path(folder) / CALIBRATION)
    return found
