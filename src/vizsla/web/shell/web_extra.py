"""The modules of the extra `web`, or one line with the install command."""

from importlib.util import find_spec

from vizsla.errors import MissingExtraError

WEB_EXTRA = (
    "anyio",
    "cachetools",
    "fastapi",
    "fastapi_offline",
    "prometheus_client",
    "python_multipart",
    "uvicorn",
)


def require_web_extra(what: str) -> None:
    """MissingExtraError with the install command, unless all modules of the extra are there.

    what: the server that needs them.
    """
    if any(find_spec(module) is None for module in WEB_EXTRA):
        raise MissingExtraError(what, "web")
