"""Vizsla ranks a gallery of images for every query, so that images of the same class come first.

The public names are loaded when they are first used: `import vizsla` costs no torch. From then on
they check the types of their arguments.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "DataError": "errors",
    "Embedder": "model.embedder",
    "Embeddings": "embed.embeddings",
    "Filter": "search.filters",
    "ImageError": "errors",
    "ImageSet": "data.imageset",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "Preprocess": "data.preprocess",
    "Ranking": "search.ranking",
    "RankingTruth": "output.query_sheets",
    "Scores": "score.scores",
    "SearchClient": "web.search.client",
    "StorageError": "errors",
    "SubmitError": "errors",
    "Truth": "score.truth",
    "UsageError": "errors",
    "VizslaError": "errors",
    "best": "run.functions",
    "build_graph": "search.knn_graph",
    "build_index": "search.index",
    "check": "run.reports",
    "cluster": "run.clustering",
    "compare": "run.reports",
    "draw_ranking": "output.query_sheets",
    "embed": "run.functions",
    "evaluate": "score.evaluate",
    "evaluate_embeddings": "score.whole_gallery",
    "fused": "search.fusion",
    "joined": "search.fusion",
    "open_data": "data.data_folders",
    "open_index": "search.index",
    "parse_chain": "search.chain",
    "rank": "search.exact",
    "rank_refined": "search.chain",
    "read_image": "data.images",
    "read_qrels": "output.trec",
    "read_submission": "output.submission",
    "report": "run.reports",
    "run": "run.functions",
    "search": "run.functions",
    "show": "output.notebook_view",
    "submit": "output.submit_client",
    "train": "run.functions",
    "write_qrels": "output.trec",
    "write_submission": "output.submission",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vizsla' has no attribute {name!r}")
    from vizsla.argument_types import checked

    value = checked(getattr(importlib.import_module(f"vizsla.{_HOME[name]}"), name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _PublicModule(ModuleType):
    """Keeps `vizsla.embed`, `run`, `search` functions when packages of these names are imported.

    Python sets a package as an attribute of its parent; here the public function keeps the name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _PublicModule


if TYPE_CHECKING:
    from vizsla.data.data_folders import open_data as open_data
    from vizsla.data.images import read_image as read_image
    from vizsla.data.imageset import ImageSet as ImageSet
    from vizsla.data.preprocess import Preprocess as Preprocess
    from vizsla.embed.embeddings import Embeddings as Embeddings
    from vizsla.errors import DataError as DataError
    from vizsla.errors import ImageError as ImageError
    from vizsla.errors import MissingExtraError as MissingExtraError
    from vizsla.errors import ModelError as ModelError
    from vizsla.errors import StorageError as StorageError
    from vizsla.errors import SubmitError as SubmitError
    from vizsla.errors import UsageError as UsageError
    from vizsla.errors import VizslaError as VizslaError
    from vizsla.model.embedder import Embedder as Embedder
    from vizsla.output.notebook_view import show as show
    from vizsla.output.query_sheets import RankingTruth as RankingTruth
    from vizsla.output.query_sheets import draw_ranking as draw_ranking
    from vizsla.output.submission import read_submission as read_submission
    from vizsla.output.submission import write_submission as write_submission
    from vizsla.output.submit_client import submit as submit
    from vizsla.output.trec import read_qrels as read_qrels
    from vizsla.output.trec import write_qrels as write_qrels
    from vizsla.run.clustering import cluster as cluster
    from vizsla.run.functions import best as best
    from vizsla.run.functions import embed as embed
    from vizsla.run.functions import run as run
    from vizsla.run.functions import search as search
    from vizsla.run.functions import train as train
    from vizsla.run.reports import check as check
    from vizsla.run.reports import compare as compare
    from vizsla.run.reports import report as report
    from vizsla.score.evaluate import evaluate as evaluate
    from vizsla.score.scores import Scores as Scores
    from vizsla.score.truth import Truth as Truth
    from vizsla.score.whole_gallery import evaluate_embeddings as evaluate_embeddings
    from vizsla.search.chain import parse_chain as parse_chain
    from vizsla.search.chain import rank_refined as rank_refined
    from vizsla.search.exact import rank as rank
    from vizsla.search.filters import Filter as Filter
    from vizsla.search.fusion import fused as fused
    from vizsla.search.fusion import joined as joined
    from vizsla.search.index import build_index as build_index
    from vizsla.search.index import open_index as open_index
    from vizsla.search.knn_graph import build_graph as build_graph
    from vizsla.search.ranking import Ranking as Ranking
    from vizsla.web.search.client import SearchClient as SearchClient
