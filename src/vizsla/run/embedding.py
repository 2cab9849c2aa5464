"""Images → embeddings in a run's folder: runs/<run id>/embeddings/<role>."""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import without_assigned_domains
from vizsla.data.tiles import Tiles
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import write_embeddings
from vizsla.embed.runtime import Runtime
from vizsla.model.embedder import Embedder
from vizsla.run.config import RunConfig
from vizsla.workspace import Run

Progress = Callable[[str, int, int], None]  # (stage, images done, images in all)
# roles whose images are embedded as tiles, if the gallery is
TILED = ("gallery", "validation", "calibration", "validation-tiles")


@dataclass(frozen=True)
class RunEmbedder:
    """Embeds images into a run's folder; what is there already is not embedded again.

    cache: a folder of vectors that runs share, or None. query_tiles: of the query images.
    """

    folder: Path
    runtime: Runtime
    max_pixels: int
    cache: str | None
    progress: Progress | None = None
    query_tiles: Tiles | None = None

    @staticmethod
    def of(
        embedder: Embedder,
        run: Run,
        compute: Compute,
        config: RunConfig,
        progress: Progress | None,
    ) -> "RunEmbedder":
        """For a run that is under way."""
        runtime = Runtime(embedder, compute)
        return RunEmbedder(
            run.folder, runtime, config.max_pixels, config.cache, progress,
            Tiles.of_query(config.query_tiles),
        )  # fmt: skip

    @staticmethod
    def of_finished(run: Run, config: RunConfig, progress: Progress | None) -> "RunEmbedder":
        """For more images in a finished run: its embedder, computing as it did then."""
        compute = resolve_compute(
            device=config.device, precision=config.precision, runtime=config.runtime,
            batch_size=config.batch_size, workers=config.workers,
            written=written_compute(run.folder / "embeddings" / "gallery"),
        )  # fmt: skip
        return RunEmbedder.of(
            Embedder.load(run.folder / "embedder"), run, compute, config, progress
        )

    def without_projection(self, images: ImageSet, role: str) -> Embeddings:
        """Vectors of the images by the network alone, without the projection after it."""
        runtime = Runtime(self.runtime.embedder.without_projection(), self.compute)
        return dataclasses.replace(self, runtime=runtime)(images, role)

    @property
    def compute(self) -> Compute:
        """What it computes with now: torch, if another runtime has failed."""
        return self.runtime.compute

    def __call__(self, images: ImageSet, role: str) -> Embeddings:
        """Vectors of the images, kept in embeddings/<role>; of their tiles in a role of TILED."""
        embedder = self.runtime.embedder

        def report(done: int, total: int) -> None:
            if self.progress:
                self.progress(f"embedding {role} by {embedder.name}", done, total)

        images = without_assigned_domains(images)  # which do not change the vectors
        out = self.folder / "embeddings" / role
        write_embeddings(
            images, embedder, out,
            runtime=self.runtime, max_pixels=self.max_pixels, cache=self.cache, progress=report,
            only_whole=role not in TILED,
            query_tiles=self.query_tiles if role == "query" else None,
        )  # fmt: skip
        return Embeddings.open(out, root=images.folder)

    def copied(self, images: ImageSet, role: str, of: str) -> Embeddings:
        """The embeddings of images that were embedded in another role `of`, copied from there."""
        out = self.folder / "embeddings" / role
        if not out.exists():
            shutil.copytree(self.folder / "embeddings" / of, out)
        return self(images, role)
