"""Model hubs → weights files and tokenisers, from the cache where they lie there already."""

import contextlib
import logging
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vizsla.errors import MissingExtraError, ModelError
from vizsla.model.catalogue import BackboneSpec
from vizsla.model.lookup import find_backbone
from vizsla.model.weights import first_sentence

log = logging.getLogger("vizsla.model")

PATIENCE = 4.0  # seconds for a connection


def fetch(name: str) -> Path:
    """Downloads the pretrained weights of a backbone into the library's cache; where they lie.

    For a model whose tokeniser is on the hub (SigLIP), that too, if transformers is installed.
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
    """The file with the pretrained weights, from the cache or the hub. Honours HF_HUB_OFFLINE."""
    try:
        repository, files, url = _whereabouts(spec)
        with _without_reports_of_retries():
            return _from_hub(repository, files) if repository else _from_url(url)
    except Exception as error:  # the hub's client fails with the errors of four libraries
        reason = first_sentence(error)
        if error.__cause__ and not isinstance(error, ModelError):
            reason += f" ({first_sentence(error.__cause__)})"
        folder = "HF_HOME names, else ~/.cache/huggingface"
        if spec.library == "torchvision":
            folder = "TORCH_HOME names, else ~/.cache/torch"
        raise ModelError(
            f"cannot get the pretrained weights of {spec.name} ({spec.source}): {reason}. "
            "Two ways out: give a weights file with --weights FILE, or run "
            f"`vizsla models --fetch {spec.name}` on a machine with network and copy its cache "
            f"(the folder that {folder})"
        ) from error


def _whereabouts(spec: BackboneSpec) -> tuple[str | None, list[str], str]:
    """Repository on the hub or None, its possible files in order, and an address for None."""
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

    cfg = timm.get_pretrained_cfg(spec.source.removeprefix("timm:"))
    if cfg is None or not cfg.has_weights:
        raise ModelError("there are no pretrained weights for it")
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
        raise ModelError(f"HF_HUB_OFFLINE is set, and the cache {HF_HUB_CACHE} does not hold them")
    require_connection(constants.ENDPOINT)
    for file in files[:-1]:
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError:
            raise  # no network: the next name would fare no better
        except EntryNotFoundError:
            log.debug("%s has no %s", repository, file)
    return Path(hub.hf_hub_download(repository, files[-1], revision=revision or None))


def _from_url(url: str) -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not url:
        raise ModelError("there are no pretrained weights for it")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if HF_HUB_OFFLINE:
        raise ModelError(f"HF_HUB_OFFLINE is set, and there is no {path}")
    require_connection(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = torch.hub.HASH_REGEX.search(path.name)
    torch.hub.download_url_to_file(url, str(path), digits.group(1) if digits else None)
    return path


# ── the network ──────────────────────────────────────────────────────────────────────────────────


def require_connection(url: str) -> None:
    """ModelError unless the server of this address, or the proxy before it, takes connections.

    It is known within seconds; the hub's own client tries for half a minute.
    """
    host, port = _first_hop(url)
    found: list[str] = []  # one entry: what is wrong, or an empty text
    # In a thread, since nothing else ends the wait for a silent name server.
    asking = threading.Thread(target=lambda: found.append(_connection_problem(host, port)))
    asking.daemon = True  # it must not hold up the program's end either
    asking.start()
    asking.join(PATIENCE + 1)
    problem = found[0] if found else f"{host} does not answer"
    if problem:
        raise ModelError(f"no network, or none that leads there: {problem}")


def _first_hop(url: str) -> tuple[str, int]:
    """Host and port of the first connection: the server's, or those of the proxy that is set."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or host, parts.port or (80 if parts.scheme == "http" else 443)


def _connection_problem(host: str, port: int) -> str:
    """Why no connection comes about; an empty text where one does."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except socket.gaierror:
        return f"the name {host} is not known"
    except ConnectionRefusedError:
        return f"{host}:{port} refuses the connection"
    except TimeoutError:
        return f"{host} does not answer"
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


@contextlib.contextmanager
def _without_reports_of_retries() -> Iterator[None]:
    """The hub's client reports every try; the error says all of it in one line."""
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

    CLIP's and PE's lie inside open_clip. SigLIP's comes from `folder`, or from the hub, through
    transformers: MissingExtraError without it, ModelError where it cannot be had.
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
        import transformers  # noqa: F401  missing: said before the network is tried

        _require_cached_or_connection(hub_name)
        return HFTokenizer(hub_name, **options)
    except ImportError as error:
        raise MissingExtraError(f"the tokeniser of {architecture}", "siglip") from error
    except Exception as error:  # as with weights: the hub's client fails in many ways
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
