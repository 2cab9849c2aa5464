"""Where an embedder's weights came from, and what was trained: kept in its folder, for results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """weights: "pretrained", "random" or "file"; None in folders that do not say.

    weights_file: the file's name. training: of the last one whose outcome was kept: `kept`,
    `is_finetuned`, `loss_function`, `num_epochs`, `final_train_loss`, `num_classes`, `images` and
    `options`, those that are not the defaults, `before` among them: those of a training on which
    it was built. None where nothing was trained.
    """

    weights: str | None = None
    weights_file: str | None = None
    training: dict[str, Any] | None = None

    @staticmethod
    def of_weights(weights: str | Path) -> "Origin":
        """Of a network that was built with these weights."""
        if weights in ("pretrained", "random"):
            return Origin(str(weights))
        return Origin("file", Path(weights).name)

    @property
    def is_finetuned(self) -> bool | None:
        """Whether a loss had to do with it; None where that is not known."""
        if self.training is not None:
            return bool(self.training["is_finetuned"])
        return None if self.weights is None else False

    def record(self) -> dict[str, Any]:
        """For a result file: what training left, the starting document's keys first."""
        training = self.training or {}
        return {
            "is_finetuned": self.is_finetuned,
            "loss_function": training.get("loss_function"),
            "num_epochs": training.get("num_epochs"),
            "final_train_loss": training.get("final_train_loss"),
            "weights": self.weights,
            "weights_file": self.weights_file,
        }

    def told_weights(self) -> str:
        """For people: where the weights came from."""
        return {
            "pretrained": "those that the library publishes",
            "random": "drawn at random",
            "file": f"from the file {self.weights_file}",
        }.get(self.weights or "", "not known")

    def told_training(self) -> str:
        """For people: what was trained."""
        if self.training is None:
            return "not known" if self.weights is None else "none: the network is frozen"
        told = [f"“{self.training['kept']}” was kept"]
        if self.training["is_finetuned"]:
            epochs = self.training["num_epochs"]  # 0 where a head alone was trained
            told += [str(self.training["loss_function"]), *([f"{epochs} epochs"] if epochs else [])]
        else:
            told.append("a fitted projection behind the frozen network")
        return ", ".join([*told, f"{self.training['images']} images"])
