"""Images or texts → unit vectors: backbone, pooling, projection, preprocessing; saved as a folder.

Texts pass through the same projection and normalisation as images.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizsla import __version__, storage
from vizsla.data.decoded import as_list, pixels_of
from vizsla.data.preprocess import Preprocess
from vizsla.data.tiles import Tiles
from vizsla.data.transforms import preprocess_of
from vizsla.errors import MissingExtraError, ModelError, UsageError
from vizsla.model.backbones import Backbone, ClipBackbone
from vizsla.model.build import PRETRAINED, RANDOM, build_backbone, resolve_backbone
from vizsla.model.catalogue import BackboneSpec
from vizsla.model.model_card import Origin, model_card, views_in
from vizsla.model.pooling import POOLINGS, check_pooling
from vizsla.model.projection import build_projection
from vizsla.model.views import STEPS, Views
from vizsla.model.weights import (
    change_markers,
    digest_of,
    load_state,
    without_counters,
)
from vizsla.model.weights_file import read_state
from vizsla.options import DEFAULT_BACKBONE

log = logging.getLogger("vizsla.model")

FORM = "embedder/1"
CONFIG, WEIGHTS, TOKENISER = "config.json", "model.safetensors", "tokeniser"
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 64, 32


class Embedder(nn.Module):
    """Images (B, 3, H, W), as `preprocess` makes them → (B, D) float32 of length 1.

    `projection` is applied to pooled images and to texts, before normalisation. To be saved it
    needs `description` (a dict, for the configuration) and `dim`.
    """

    def __init__(self, backbone: Backbone, pooling: str, *, name: str | None = None) -> None:
        super().__init__()
        self.name = name or backbone.spec.name
        self.pooling = check_pooling(pooling, backbone.poolings, self.name)
        if self.pooling != "native":
            backbone.drop_text()
        self.backbone = backbone
        self.preprocess = backbone.preprocess
        self.pool = POOLINGS[self.pooling]()
        self.projection: nn.Module = nn.Identity()
        self.views: Views | None = None
        self.tiles: Tiles | None = None  # of which `embed` makes a vector each; here one is made
        self.origin = Origin()
        self.source: dict[str, Any] | None = None  # the options that build it again, if known
        self._cached_digest: tuple[list[Any], str] | None = None

    def __repr__(self) -> str:
        """One line: torch's own repr lists every layer."""
        return f"Embedder {self.name}, {self.pooling} pooling, {self.preprocess!r}"

    # ── building ─────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def build(
        name: str = DEFAULT_BACKBONE,
        *,
        weights: str | Path = PRETRAINED,
        pooling: str | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> "Embedder":
        """An embedder on this backbone (see `vizsla models`); pooling: None is its default.

        weights: "pretrained", "random" (drawn from `seed`), or a file.
        """
        spec = resolve_backbone(name)
        pooling = check_pooling(pooling or spec.pooling, spec.poolings or (), spec.name)
        backbone = build_backbone(spec, weights, image_size=image_size, seed=seed)
        embedder = Embedder(backbone, pooling)
        embedder.origin = Origin.of_weights(weights)
        file = Path(weights).exists() and str(Path(weights).absolute())
        embedder.source = {"model": name, "weights": file or str(weights), "pooling": pooling,
                           "image_size": image_size, "seed": seed}  # fmt: skip
        return embedder.eval()

    @staticmethod
    def from_module(
        module: nn.Module,
        preprocess: Preprocess | int | Any,
        *,
        name: str = "custom",
        pooling: str | None = None,
    ) -> "Embedder":
        """From any network that returns vectors (B, D), a map (B, C, H, W) or tokens (B, T, C).
        It is run once, on black images, to see which.

        preprocess: the transform of torchvision or timm that the network was trained with (Resize,
        CenterCrop, ToTensor, Normalize, or `weights.transforms()`), a Preprocess, or an image size,
        with ImageNet's mean and std. UsageError: a transform of another kind.
        The model_id depends on the module's class and weights, not on its code: when the code
        changes, change `name`.
        """
        backbone = CustomBackbone(module, preprocess_of(preprocess), name)
        return Embedder(backbone, pooling or backbone.spec.pooling).eval()

    # ── embedding ────────────────────────────────────────────────────────────────────────────────

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) float32 of length 1 from preprocessed images (B, 3, H, W)."""
        return self.project(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """(B, C): the backbone's vectors, before projection and normalisation; with views the mean
        of the views' unit vectors."""
        pooled = []
        for view in [images] if self.views is None else self.views.of(images):
            if self.pooling == "native":
                pooled.append(self.backbone.native(view))
            elif self.pooling == "cls":
                pooled.append(self.backbone.cls(view))
            elif self.pooling == "stages":
                pooled.append(self.pool(self.backbone.stages(view)))
            else:
                pooled.append(self.pool(self.backbone.features(view)))
        if self.views is None:
            return pooled[0]
        return torch.stack([F.normalize(vectors.float(), dim=1) for vectors in pooled]).mean(dim=0)

    def without_projection(self) -> "Embedder":
        """An embedder with the same backbone, not a copy of it, that gives pooled vectors of length
        1."""
        other = copy.copy(self)
        other._modules = {**self._modules, "projection": nn.Identity()}
        return other

    def with_interpolation(self, name: str) -> "Embedder":
        """Changes how images are resized (for weights that were trained so); returns itself."""
        self.preprocess = dataclasses.replace(self.preprocess, interpolation=name)
        self.source = self.source and {**self.source, "interpolation": name}
        return self

    def with_framing(self, name: str) -> "Embedder":
        """Changes how much of an image is seen (see Preprocess.framed); returns itself."""
        self.preprocess = self.preprocess.framed(name)
        self.source = self.source and {**self.source, "framing": name}
        return self

    def with_views(self, text: str) -> "Embedder":
        """Averages over these views of each image (see Views.parse) from now on; returns itself.

        ModelError if the network takes images of one size only.
        """
        views = Views.parse(text)
        self.source = self.source and {**self.source, "views": text}
        for step in STEPS:
            self.views = views and dataclasses.replace(views, step=step)
            if views is None or views.scales == (1.0,) or self._accepts_views():
                return self
        self.views = None
        raise ModelError(
            f"{self.name} takes images of {self.preprocess.size[0]} pixels only, not views of "
            f"other scales ({text}): use --views flip"
        )

    def with_tiles(self, text: str) -> "Embedder":
        """Has `embed` make a vector of each of these tiles of an image (see Tiles.parse) from now
        on; returns itself."""
        self.source = self.source and {**self.source, "tiles": text}
        self.tiles = Tiles.parse(text)
        return self

    def _accepts_views(self) -> bool:
        """Whether the network takes all views; tried on a black image."""
        parameter = next(self.parameters())
        black = torch.zeros(1, 3, *self.preprocess.size).to(parameter)
        try:
            with torch.no_grad():
                self.pooled(black)
        except (RuntimeError, AssertionError, ValueError):
            return False
        return True

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """(B, D) float32 of length 1, on the CPU.

        images: a path, the bytes of a file, a PIL image or a uint8 array (H, W, 3), or a list of
        them. Of a folder use `vizsla.embed`, which decodes and embeds at the same time. DataError:
        an image cannot be read.
        """
        images, device = as_list(images), next(self.parameters(), torch.empty(0)).device
        parts = [
            self(self.preprocess.normalised(torch.from_numpy(pixels).to(device))).cpu()
            for start in range(0, len(images), IMAGES_AT_ONCE)
            for pixels in [
                pixels_of(
                    images[start : start + IMAGES_AT_ONCE], self.preprocess.framing, first=start
                )
            ]
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    @torch.no_grad()
    def encode_text(self, texts: str | list[str]) -> Tensor:
        """(B, D) float32 of length 1, comparable with the vectors of images; ModelError if the
        model reads no text."""
        if not self.reads_text and self.pooling != "native" and self.backbone.spec.reads_text:
            raise ModelError(
                f"{self.name} reads text only with native pooling: with {self.pooling} pooling, "
                "texts and images share no space. Build it with --pooling native"
            )
        if not self.reads_text:
            raise ModelError(f"{self.name} reads no text: choose a CLIP, SigLIP or PE model")
        texts = [texts] if isinstance(texts, str) else texts
        parts = [
            self.project(self.backbone.encode_text(texts[i : i + TEXTS_AT_ONCE]))
            for i in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def project(self, vectors: Tensor) -> Tensor:
        """(B, D) float32 of length 1 from (B, C) pooled vectors or texts."""
        device = vectors.device.type
        has_autocast = device != "meta"  # asking torch would break compiled graphs
        with torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext():
            return F.normalize(self.projection(vectors.float()).float(), dim=1)  # 0 stays 0

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def dim(self) -> int:
        """D, the length of its vectors."""
        projected = getattr(self.projection, "dim", None)
        return int(projected) if projected is not None else self.backbone.dim(self.pooling)

    @property
    def reads_text(self) -> bool:
        """Whether `encode_text` works."""
        return self.pooling == "native" and self.backbone.reads_text

    @property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to rebuild it, except the weights."""
        spec = self.backbone.spec
        return {
            "name": self.name,
            "backbone": {
                "library": spec.library,
                "architecture": spec.architecture,
                "tag": spec.tag,
                "pooling": spec.pooling,
                "poolings": list(self.backbone.poolings),
                "reads_text": spec.reads_text,
                "image_size": spec.image_size,
                "resize": spec.resize,
            },
            "pooling": self.pooling,
            "image_size": self.preprocess.size[0],
            "preprocess": self.preprocess.to_dict(),
            "projection": getattr(self.projection, "description", None),
            "views": None if self.views is None else dataclasses.asdict(self.views),
            "tiles": None if self.tiles is None else str(self.tiles),
            "dim": self.dim,
            "reads_text": self.reads_text,
            "licence": spec.licence,
            "origin": dataclasses.asdict(self.origin),
        }

    @property
    def model_id(self) -> str:
        """24 hex digits that identify weights, pooling, projection, preprocessing, views and tiles.

        Name, device and the precision that it was cast to do not matter.
        """
        parts = {
            "network": self.backbone.identity,
            "pooling": self.pooling,
            "projection": getattr(self.projection, "description", None),
            "preprocess": self.preprocess.to_dict(),
            "weights": self._weights_digest(),
        }
        if self.views is not None:
            parts["views"] = dataclasses.asdict(self.views)
        if self.tiles is not None:
            parts["tiles"] = self.tiles.boxes
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _weights_digest(self) -> str:
        """Cached while no tensor changes: hashing a large model takes seconds."""
        state = without_counters(self.state_dict())
        markers = change_markers(state)
        if self._cached_digest is None or self._cached_digest[0] != markers:
            self._cached_digest = markers, digest_of(state)
        return self._cached_digest[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Embedder":
        """Called by `.to()`, `.half()` …: a cast rounds the weights but keeps the model_id."""
        tensors = self.state_dict().values()
        dtypes = {t.dtype for t in tensors if t.is_floating_point()}
        casts = any(fn(torch.zeros(1, dtype=dtype)).dtype != dtype for dtype in dtypes)
        known = casts and not any(t.is_meta for t in tensors)
        digest = self._weights_digest() if known else None
        super()._apply(fn, recurse)
        if digest is not None:
            self._cached_digest = change_markers(without_counters(self.state_dict())), digest
        return self

    # ── its folder ───────────────────────────────────────────────────────────────────────────────

    def save(self, folder: str | Path) -> None:
        """Writes weights, tokeniser files, a model card, and last the sealed configuration."""
        folder = Path(folder)
        files = {WEIGHTS: self._save_weights(folder / WEIGHTS), **self._save_tokeniser(folder)}
        content = {
            "form": FORM,
            "vizsla": __version__,
            **self.config,
            "model_id": self.model_id,
            "weights_digest": self._weights_digest(),
            "files": files,
        }
        _write_description(folder, content)
        self.source = {"model": str(folder.absolute())}

    def save_origin(self, folder: str | Path) -> None:
        """Rewrites the configuration and the model card in `folder`, not the weights."""
        _write_description(Path(folder), {**read_config(folder), **self.config})

    def _save_weights(self, path: Path) -> str:
        from safetensors.torch import save_file

        state = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        saved: set[int] = set()
        for name, tensor in state.items():  # tensors with two names are stored twice
            if tensor.data_ptr() in saved:
                state[name] = tensor.clone()
            saved.add(tensor.data_ptr())
        with storage.writing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
            return storage.sha256_of(temporary)

    def _save_tokeniser(self, folder: Path) -> dict[str, str]:
        """Path below `folder` → SHA-256; empty if open_clip has the tokeniser built in."""
        if not (self.reads_text and isinstance(self.backbone, ClipBackbone)):
            return {}
        try:
            write = getattr(self.backbone.tokeniser, "save_pretrained", None)
        except (MissingExtraError, ModelError) as error:
            log.warning("%s is saved without its tokeniser: %s", self.name, error)
            return {}
        if write is None:
            return {}
        hashes = {}
        with tempfile.TemporaryDirectory() as temporary:
            write(temporary)
            for file in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
                name = f"{TOKENISER}/{file.relative_to(temporary).as_posix()}"
                storage.write_bytes(folder / name, file.read_bytes())
                hashes[name] = storage.sha256_of(folder / name)
        return hashes

    @staticmethod
    def load(folder: str | Path, *, module: nn.Module | None = None) -> "Embedder":
        """The embedder in a folder that `save` wrote; downloads nothing.

        module: the network, for embedders made with `from_module` only.
        """
        folder = Path(folder)
        config = read_config(folder)
        for name, sha256 in config["files"].items():
            storage.verify(folder / name, sha256)
        embedder = Embedder(_rebuilt(config, module), config["pooling"], name=config["name"])
        embedder.preprocess = Preprocess.from_dict(config["preprocess"])
        embedder.projection = build_projection(config["projection"])
        embedder.views = views_in(config)
        embedder.tiles = Tiles.parse(config.get("tiles") or "none")
        embedder.origin = Origin(**config.get("origin") or {})
        if isinstance(embedder.backbone, ClipBackbone) and f"{TOKENISER}/" in str(config["files"]):
            embedder.backbone.tokeniser_folder = folder / TOKENISER
        load_state(embedder, read_state(folder / WEIGHTS), origin=str(folder / WEIGHTS))
        markers = change_markers(without_counters(embedder.state_dict()))
        embedder._cached_digest = markers, config["weights_digest"]
        embedder.source = {"model": str(folder.absolute())}
        return embedder.eval()


class CustomBackbone(Backbone):
    """A network that the caller built."""

    def __init__(self, module: nn.Module, preprocess: Preprocess, name: str) -> None:
        shape = _output_shape(module, preprocess)
        poolings = ("native",) if len(shape) == 2 else ("gap", "gem", "max")
        class_name = f"{type(module).__module__}.{type(module).__qualname__}"
        spec = BackboneSpec(name, "custom", class_name, None, poolings[0], poolings=poolings)
        super().__init__(spec, module, preprocess)
        self.feature_dim = self.native_dim = shape[2] if len(shape) == 3 else shape[1]

    @property
    def identity(self) -> str:
        """Name and class, for the model_id."""
        return f"custom:{self.spec.name}:{self.spec.architecture}"

    def features(self, images: Tensor) -> Tensor:
        """What the network returns: vectors, a map or tokens."""
        features: Tensor = self.network(images)
        return features

    native = features


def _output_shape(module: nn.Module, preprocess: Preprocess) -> torch.Size:
    parameter = next(module.parameters(), torch.empty(0))
    module.eval()
    with torch.no_grad():
        black = torch.zeros(2, 3, *preprocess.size, device=parameter.device)
        try:
            found = module(black)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"the module fails on images of shape {tuple(black.shape)}: {error}"
            ) from error
    if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4) or len(found) != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"for two images the module returns {what}: expected vectors (2, D), "
            "a map (2, C, H, W) or tokens (2, T, C)"
        )
    return found.shape


# ── reading a folder ─────────────────────────────────────────────────────────────────────────────


def read_config(folder: str | Path) -> dict[str, Any]:
    """An embedder's configuration, its seal checked; ModelError if it is not one."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is not a saved embedder: it has no {CONFIG}")
    config = storage.read_sealed_json(folder / CONFIG)
    if config.get("form") != FORM:
        raise ModelError(f"{folder} is not a saved embedder, but {config.get('form')!r}")
    return config


def _rebuilt(config: dict[str, Any], module: nn.Module | None) -> Backbone:
    """The backbone of a saved embedder, before its weights are loaded."""
    stored = config["backbone"]
    if stored["library"] == "custom":
        if module is None:
            raise ModelError(
                f"{config['name']} was made from a module ({stored['architecture']}) "
                "whose code is not in the folder: Embedder.load(folder, module=…)"
            )
        return CustomBackbone(module, Preprocess.from_dict(config["preprocess"]), config["name"])
    if module is not None:
        raise UsageError(f"{config['name']} was not made from a module: leave out module=")
    facts: dict[str, Any] = {**stored, "poolings": tuple(stored["poolings"])}
    spec = BackboneSpec(config["name"], **facts, dim=config["dim"], licence=config["licence"])
    return build_backbone(spec, RANDOM, image_size=config["image_size"])


def _write_description(folder: Path, content: dict[str, Any]) -> None:
    """The model card, and last the sealed configuration."""
    storage.write_text(folder / "README.md", model_card(content))
    storage.write_sealed_json(folder / CONFIG, content)
