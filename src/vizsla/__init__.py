"""Vizsla ranks a gallery of images for every query, so that images of the same class come first.

The public names are loaded when they are first used: `import vizsla` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "DataError": "errors",
    "Embedder": "model.embedder",
    "Embeddings": "model.embeddings",
    "Filter": "search.filters",
    "ImageError": "errors",
    "ImageSet": "data.imageset",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "Preprocess": "data.transforms",
    "Ranking": "search.ranking",
    "RunConfig": "runconfig",
    "Scores": "score.scores",
    "SearchClient": "web.serve_client",
    "StorageError": "errors",
    "SubmitError": "errors",
    "Truth": "score.relevance",
    "UsageError": "errors",
    "VizslaError": "errors",
    "build_graph": "search.graph",
    "build_index": "search.index",
    "draw_ranking": "output.figures",
    "embed": "model.inference",
    "evaluate": "score.scores",
    "evaluate_embeddings": "score.embedded",
    "fused": "search.fusion",
    "joined": "search.fusion",
    "open_data": "data.imageset",
    "open_index": "search.index",
    "parse_chain": "search.chain",
    "rank": "search.exact",
    "rank_refined": "search.chain",
    "read_image": "data.images",
    "read_qrels": "output.qrels",
    "read_submission": "output.submission",
    "run": "pipeline",
    "submit": "output.client",
    "write_qrels": "output.qrels",
    "write_submission": "output.submission",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vizsla' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vizsla.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from vizsla.data.images import read_image as read_image
    from vizsla.data.imageset import ImageSet as ImageSet
    from vizsla.data.imageset import open_data as open_data
    from vizsla.data.transforms import Preprocess as Preprocess
    from vizsla.errors import DataError as DataError
    from vizsla.errors import ImageError as ImageError
    from vizsla.errors import MissingExtraError as MissingExtraError
    from vizsla.errors import ModelError as ModelError
    from vizsla.errors import StorageError as StorageError
    from vizsla.errors import SubmitError as SubmitError
    from vizsla.errors import UsageError as UsageError
    from vizsla.errors import VizslaError as VizslaError
    from vizsla.model.embedder import Embedder as Embedder
    from vizsla.model.embeddings import Embeddings as Embeddings
    from vizsla.model.inference import embed as embed
    from vizsla.output.client import submit as submit
    from vizsla.output.figures import draw_ranking as draw_ranking
    from vizsla.output.qrels import read_qrels as read_qrels
    from vizsla.output.qrels import write_qrels as write_qrels
    from vizsla.output.submission import read_submission as read_submission
    from vizsla.output.submission import write_submission as write_submission
    from vizsla.pipeline import run as run
    from vizsla.runconfig import RunConfig as RunConfig
    from vizsla.score.embedded import evaluate_embeddings as evaluate_embeddings
    from vizsla.score.relevance import Truth as Truth
    from vizsla.score.scores import Scores as Scores
    from vizsla.score.scores import evaluate as evaluate
    from vizsla.search.chain import parse_chain as parse_chain
    from vizsla.search.chain import rank_refined as rank_refined
    from vizsla.search.exact import rank as rank
    from vizsla.search.filters import Filter as Filter
    from vizsla.search.fusion import fused as fused
    from vizsla.search.fusion import joined as joined
    from vizsla.search.graph import build_graph as build_graph
    from vizsla.search.index import build_index as build_index
    from vizsla.search.index import open_index as open_index
    from vizsla.search.ranking import Ranking as Ranking
    from vizsla.web.serve_client import SearchClient as SearchClient
