"""`demo`: the main job on generated images, before and after training."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.data.demo import make_demo
from vizsla.run.config import RunConfig
from vizsla.run.embedding import Progress
from vizsla.run.finish import RunResult
from vizsla.run.finished_run import report
from vizsla.run.pipeline import run


@dataclass(frozen=True)
class Demo:
    """What `vizsla demo` did: a run for each row of its table."""

    folder: Path
    rows: dict[str, RunResult]
    page: Path

    def text(self) -> str:
        """Three metrics of each run as a table, the written files, and commands to try next."""
        keys = {"top_k_accuracy@1": "top-1", "top_k_accuracy@10": "top-10", "map": "mAP"}
        lines = [f"{'':<22}" + "".join(f"{title:>8}" for title in keys.values())]
        for title, result in self.rows.items():
            figures = [f"{value:>8.3f}" for value in _means(result, keys)]
            lines.append(f"{title:<22}" + "".join(figures))
        last = list(self.rows.values())[-1]
        return "\n".join(
            [
                *lines,
                "",
                f"metrics     {last.result_path}",
                f"submission  {last.submission_path}",
                f"sheets      {last.run.figures_folder(last.model_name)}",
                f"report      {self.page}",
                "",
                "Next, on your own images (needs no network either):",
                "  vizsla run YOUR_DATA",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The result of each run by its row's title, for JSON."""
        return {title: result.to_dict() for title, result in self.rows.items()}


def _means(result: RunResult, keys: Iterable[str]) -> list[float]:
    assert result.scores is not None  # the demo's data set has labels
    return [result.scores.mean(key) or 0.0 for key in keys]


DEMO_TUNING = {
    "finetune": "head",
    "head_steps": 60,  # a quarter of the default: the demo is to be short
    "validate_on": "seen-classes",
    "query_domain": "photo",
    "gallery_domain": "drawn",
}


def demo(folder: str | Path, *, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Generates a small cross-domain data set in `folder` and does the main job on it, twice: with
    the default network as it is, and with a head fitted to the training images. Then a report."""
    folder = Path(folder)
    make_demo(folder / "data", seed=seed)
    frozen = RunConfig(
        data=str(folder / "data"),
        image_size=128,  # a third of the time of 224; the images have 96 pixels
        runtime="torch",  # so few images do not repay the start of another
        cache=str(folder / "vectors"),
        seed=seed,
        home=str(folder),
    )
    fitted = dataclasses.replace(frozen, tuning=DEMO_TUNING)
    rows = {"frozen": run(frozen, progress), "with a fitted head": run(fitted, progress)}
    page = report(
        rows["with a fitted head"].run.folder,
        folder / "report.html",
        projection="pca",
        progress=progress,
    )
    return Demo(folder, rows, page)
