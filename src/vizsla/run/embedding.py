"""Images → embeddings in a run's folder: runs/<run id>/embeddings/<role>."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.torch_runtime import TorchRuntime
from vizsla.model.embedder import Embedder
from vizsla.run.config import RunConfig
from vizsla.workspace import Run

Progress = Callable[[str, int, int], None]  # (stage, images done, images in all)


@dataclass(frozen=True)
class RunEmbedder:
    """Embeds images into `folder`, a run's; what is there already is not embedded again.

    cache: a folder of vectors that runs share, or None.
    """

    folder: Path
    network: TorchRuntime
    max_pixels: int
    cache: str | None
    progress: Progress | None = None

    def __call__(self, images: ImageSet, role: str) -> Embeddings:
        """Vectors of the images, kept in embeddings/<role>."""

        def report(done: int, total: int) -> None:
            if self.progress:
                self.progress(f"embedding {role}", done, total)

        return embed(
            images, self.network.embedder, self.folder / "embeddings" / role,
            runtime=self.network, max_pixels=self.max_pixels, cache=self.cache, progress=report,
        )  # fmt: skip

    @staticmethod
    def of_finished(run: Run, config: RunConfig, progress: Progress | None) -> "RunEmbedder":
        """The one of a finished run: its embedder, computing as it did then."""
        compute = resolve_compute(
            device=config.device, precision=config.precision, compiling=config.compiling,
            batch_size=config.batch_size, workers=config.workers,
            written=written_compute(run.folder / "embeddings" / "gallery"),
        )  # fmt: skip
        network = TorchRuntime(Embedder.load(run.folder / "embedder"), compute)
        return RunEmbedder(run.folder, network, config.max_pixels, config.cache, progress)
