"""`--teacher`: a model, a run or embeddings → the vectors that a training learns from."""

from functools import partial
from pathlib import Path

from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.embeddings import Embeddings, is_embeddings
from vizsla.embed.inference import embed
from vizsla.embed.projected import projected
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import load_projection
from vizsla.options import ModelChoice
from vizsla.run.config import RunConfig
from vizsla.run.fused_runs import FusionConfig, members_of, weights_of
from vizsla.search.fusion import joined
from vizsla.train.teacher import Report, Teacher
from vizsla.workspace import PROJECTION, is_run

VECTORS = "teacher"  # the folder of the teacher's vectors, in that of a training


def teacher_of(config: RunConfig, out: Path) -> Teacher | None:
    """The teacher that the options of the training name; None if they name none.

    out: the folder of the training, which keeps the vectors until it has ended. Of a run of several
    models, their joined vectors teach.
    """
    name = config.training.teacher
    if name is None:
        return None
    if is_embeddings(name):
        stored = Embeddings.open(name)
        return Teacher(name, stored.model_id, lambda images, report: stored)
    members, fusion = members_of(name) if is_run(name) else ([], FusionConfig())
    models = [str(member.run.folder) for member in members] or [name]
    embedders = [load_embedder(ModelChoice(model=model), seed=config.seed) for model in models]

    def vectors(images: ImageSet, report: Report) -> Embeddings:
        folders = [out / VECTORS / str(i) for i in range(len(embedders))]
        parts = list(map(partial(_embedded, images, config, report), embedders, folders))
        found = joined(parts, weights_of(fusion, len(parts)))
        if not (Path(name) / PROJECTION).exists():
            return found
        return projected(found, load_projection(Path(name) / PROJECTION), fusion.whiten)

    return Teacher(name, "+".join(one.model_id for one in embedders), vectors)


def _embedded(
    images: ImageSet, config: RunConfig, report: Report, embedder: Embedder, folder: Path
) -> Embeddings:
    compute = resolve_compute(
        device=config.device, workers=config.workers, embedder=embedder, images=len(images),
        sample=images.file, written=written_compute(folder),
    )  # fmt: skip
    return embed(
        images, embedder, folder, compute=compute, max_pixels=config.max_pixels,
        cache=config.cache, progress=report, only_whole=True, kept=False,
    )  # fmt: skip
