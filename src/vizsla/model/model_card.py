"""The origin of an embedder's weights and training, and its model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.data.preprocess import Preprocess
from vizsla.model.views import Views


@dataclass(frozen=True)
class Origin:
    """weights: "pretrained", "random" or "file"; None if the folder does not record it.

    weights_file: the file's name. training: of the last training whose result was kept: `kept`,
    `is_finetuned`, `loss_function`, `num_epochs`, `final_train_loss`, `num_classes`, `images` and
    `options`, with `before` among them: those of the training that it continued; `trained_on`, of
    each training a sample of its images (`data.fingerprint`), the last one last; `validation`, its
    scores on held-out images. None if nothing was trained.
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
        """Whether it was trained with a loss; None if that is not known."""
        if self.training is not None:
            return bool(self.training["is_finetuned"])
        return None if self.weights is None else False

    def record(self) -> dict[str, Any]:
        """The keys of a result file that describe training and weights."""
        training = self.training or {}
        return {
            "is_finetuned": self.is_finetuned,
            "loss_function": training.get("loss_function"),
            "num_epochs": training.get("num_epochs"),
            "final_train_loss": training.get("final_train_loss"),
            "weights": self.weights,
            "weights_file": self.weights_file,
        }

    def weights_text(self) -> str:
        """The origin of the weights, in words."""
        return {
            "pretrained": "those that the library publishes",
            "random": "drawn at random",
            "file": f"from the file {self.weights_file}",
        }.get(self.weights or "", "not known")

    def training_text(self) -> str:
        """What was trained, in words."""
        if self.training is None:
            return "not known" if self.weights is None else "none: the network is frozen"
        parts = [f"“{self.training['kept']}” was kept"]
        if self.training["is_finetuned"]:
            epochs = self.training["num_epochs"]  # 0 if only a head was trained
            parts += [str(self.training["loss_function"])]
            parts += [f"{epochs} epochs"] if epochs else []
        else:
            parts.append("a projection fitted to the vectors of the unchanged network")
        return ", ".join([*parts, f"{self.training['images']} images"])


def views_in(config: dict[str, Any]) -> Views | None:
    """The test-time views in an embedder's configuration; None for the plain image."""
    found = config.get("views")
    return Views(**{**found, "scales": tuple(found["scales"])}) if found else None


def model_card(config: dict[str, Any]) -> str:
    """README.md of an embedder's folder, in Markdown, from its configuration."""
    reads = "images and text" if config["reads_text"] else "images"
    backbone = config["backbone"]
    source = f"{backbone['library']}: {backbone['architecture']}"
    if backbone["tag"]:
        source += f", {backbone['tag']}"
    origin = Origin(**config["origin"])
    licence = config["licence"] or "not known"
    if origin.weights == "file":
        licence += f"; that of {origin.weights_file} is not known"
    return f"""# {config["name"]}

An embedder for image retrieval, written by vizsla.

| | |
|---|---|
| network | {source} |
| weights | {origin.weights_text()} |
| training | {origin.training_text()} |
| pooling | {config["pooling"]} |
| reads | {reads} |
| vectors | {config["dim"]} numbers, of length 1 |
| images | {Preprocess.from_dict(config["preprocess"])} |
| views of each | {views_in(config) or "one"} |
| tiles of each | {config.get("tiles") or "the whole image"} |
| licence of the library's weights | {licence} |
| model id | {config["model_id"]} |

```python
from vizsla import Embedder, read_image

embedder = Embedder.load("this folder")
vectors = embedder(embedder.preprocess(read_image("photo.jpg"))[None])  # (1, {config["dim"]})
```
"""
