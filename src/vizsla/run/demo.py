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
from vizsla.run.pipeline import run


@dataclass(frozen=True)
class Demo:
    """What `vizsla demo` did: a run for each row of its table."""

    folder: Path
    rows: dict[str, RunResult]

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
                f"figures     {last.run.figures_folder(last.model_name)}",
                "",
                "Next, on this data with a real model, or on your own (neither needs a network):",
                f"  vizsla run {self.folder / 'data'}",
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
    "finetune": "full",
    "loss": "cross-entropy+0.5*supcon",
    "augment": "light",
    "epochs": 14,
    "learning_rate": 2e-3,  # from scratch: the same for all layers; batch norms are trained too
    "head_learning_rate": 2e-3,
    "layer_decay": 1.0,
    "batch_norm": "trained",
    "validate_on": "seen-classes",
    "query_domain": "photo",
    "gallery_domain": "drawn",
}


def demo(folder: str | Path, *, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Generates a small cross-domain data set in `folder` and does the main job on it, twice:
    with an untrained network, and after training it."""
    folder = Path(folder)
    make_demo(folder / "data", seed=seed)
    untrained = RunConfig(
        data=str(folder / "data"),
        model="tiny",
        weights="random",
        image_size=64,
        seed=seed,
        home=str(folder),
    )
    trained = dataclasses.replace(untrained, tuning=DEMO_TUNING)
    rows = {"untrained": run(untrained, progress), "trained": run(trained, progress)}
    return Demo(folder, rows)
