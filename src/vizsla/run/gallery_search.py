"""A gallery and queries, however they are named → Ranking: the command `search`, and `find`."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.choose.query_join import choose_query_join
from vizsla.choose.refinement import STAGE, RefinementChoice, choose_chain_on_embeddings
from vizsla.data.imageset import ImageSet
from vizsla.data.query_box import QueryBox
from vizsla.data.splits import AUTO
from vizsla.data.tables import no_column
from vizsla.data.tiles import Tiles
from vizsla.embed.auto_compute import compute_of, resolve_compute
from vizsla.embed.cache import shared_cache
from vizsla.embed.embeddings import Embeddings, is_embeddings
from vizsla.embed.inference import write_embeddings
from vizsla.embed.local_features import opencv
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.hub import require_weights
from vizsla.model.open_model import is_chosen, load_embedder, recorded_embedder
from vizsla.options import ComputeChoice, ModelChoice, SearchOptions
from vizsla.progress import LOADING, Report, waiting
from vizsla.run.accept_items import calibration_of_items, learns_from_items
from vizsla.run.accepting import Accept
from vizsla.run.joint_search import JointSearch
from vizsla.run.members import Member
from vizsla.run.query_images import embedded_images
from vizsla.run.validate_on import validate_on_by_vectors
from vizsla.score.calibration import Calibration
from vizsla.score.match_model import LISTED
from vizsla.search.chain import AFTER, Chain, parse_chain, rank_refined
from vizsla.search.exact import default_depth, require_comparable
from vizsla.search.filters import Filter
from vizsla.search.folder_index import SHOWN, FolderIndex
from vizsla.search.groups import ResultForm
from vizsla.search.index import Index, in_memory, open_index
from vizsla.search.index_files import is_index
from vizsla.search.items import items_of, joined_rankings, joined_vectors, mean_lengths
from vizsla.search.knn_graph import GraphFolder, Keeper
from vizsla.search.milvus_index import is_milvus
from vizsla.search.queries import QueryEncoder, encoded, images_and_texts, is_text
from vizsla.search.query_tiles import require_plain_search
from vizsla.search.ranking import Ranking
from vizsla.search.results import regrouped
from vizsla.search.verify import features_of_both, folder_of
from vizsla.workspace import is_run

log = logging.getLogger("vizsla.search")


@dataclass(frozen=True)
class SearchResult:
    """A ranking, the chain that refined it, how that was chosen, and the gallery."""

    ranking: Ranking
    chain: Chain
    choice: RefinementChoice | None
    model_id: str
    gallery: Index


def search_gallery(
    gallery: Any,
    queries: Any,
    options: SearchOptions,
    progress: Report | None = None,
    *,
    deep: bool = False,
) -> SearchResult:
    """The gallery ranked for each query.

    gallery: a run, an index or embeddings, or the path of one. queries: embeddings or their folder,
    a folder of images, or what `Index.search` takes. deep: by default more than ten images a query.
    """
    condition = Filter.of(options.filter)
    device = resolve_compute(device=options.device).device
    _check_options(options)
    named, joint = gallery, None
    if isinstance(gallery, str | Path) and is_run(gallery):
        joint = JointSearch.of(gallery)
        gallery, options = _gallery_and_model_of_run(gallery, options, joint)
    found, where = open_gallery(gallery, device), str(gallery)
    if condition is not None and isinstance(found, FolderIndex):
        condition.masks(found.attributes)  # what is misspelt is an error before the work
    calibration = _calibration(named, options, found, where)
    by_model = partial(
        embedded_queries, queries, seed=options.seed, device=device, progress=progress,
        box=QueryBox.of(options.box), tiles=Tiles.of_query(options.query_tiles),
    )  # fmt: skip
    if joint is None:
        query_set = by_model(found, choice=options)
    elif _are_vectors(queries):
        query_set = joint.scaled(by_model(found, choice=options), vectors_of(found, where))
    else:
        query_set = _by_all_models(joint, by_model, vectors_of(found, where))
    chain, choice = chain_of(
        options.refine, options.refine_uses, options.learn_on, options.validate_on,
        optimise=options.optimise,
        queries=query_set, gallery=lambda: vectors_of(found, where), progress=progress,
        joining=options.query_join == "auto", same_set=options.same_set,
    )  # fmt: skip
    k, same_set = options.top_k, options.same_set
    if k is None:
        k = min(default_depth(len(found)) if deep else SHOWN, len(found) - same_set)
    k = max(k, 1)
    form = ResultForm(options.group_by, options.per_group, options.group_score, options.diverse)
    items, join = _items(query_set, options)
    lengths = None
    if items is not None and join == "mean" and not chain.steps:
        lengths = mean_lengths(query_set, items)
        query_set, items = joined_vectors(query_set, items), None
    whole = len(found) - same_set

    def ranked(k: int, form: ResultForm) -> Ranking:
        if not chain.steps:
            ranking = found.search(
                query_set, k, condition, group_by=options.group_by if form.group_by else None,
                per_group=form.per_group, group_score=form.group_score, diverse=form.diverse,
                same_set=same_set, items=items, query_tiles=options.query_tiles,
            )  # fmt: skip
            about = {} if joint is None else joint.origin
            return dataclasses.replace(ranking, origin={**ranking.origin, **about})
        ranking = search_refined(
            found, where, query_set, chain, k if items is None else whole, condition,
            form=form if items is None else ResultForm(), same_set=same_set,
            device=device, progress=progress and partial(progress, "graph"),
        )  # fmt: skip
        if items is None:
            return ranking
        ranking = joined_rankings(ranking, items, join)  # as deep as they are
        return regrouped(ranking, _gallery_of(ranking, found, where), k, form)

    if calibration is None:
        ranking = ranked(k, form)
    else:
        ranking = _decided(ranked, k, form, calibration, lengths, found, whole=whole)
    ranking = dataclasses.replace(ranking, attributes_of=found.attributes_of)
    fewest = int((ranking.positions >= 0).sum(axis=1).min(initial=k))
    if condition is not None and fewest < k:
        what = "images" if options.group_by is None else "groups"
        log.info("%d results, not %d: no more %s meet the filter", fewest, k, what)
    return SearchResult(ranking, chain, choice, found.model_id, found)


def _check_options(options: SearchOptions) -> None:
    """UsageError for options that do not go together."""
    if options.query_tiles is not None:
        require_plain_search(options.refine, options.accept)
        if options.query_group is not None and options.query_join != "max":
            raise UsageError(
                "--query-group joins the vectors of pictures, if not with --query-join max: leave "
                "it out, or --query-tiles"
            )
    if options.accept is not None:
        _require_decidable(options)
        Accept.parse(options.accept)


def _gallery_and_model_of_run(
    run: str | Path, options: SearchOptions, joint: JointSearch | None
) -> tuple[Path, SearchOptions]:
    """The gallery of a run, and the options with its model, which embeds queries, unless another
    one was chosen. joint: what it is searched by if it has several; UsageError for options that
    these cannot follow."""
    gallery = Path(run) / "embeddings" / "gallery"
    if joint is None:
        model = options.model if is_chosen(options) else str(run)
        return gallery, dataclasses.replace(options, model=model)
    if is_chosen(options):
        raise UsageError(
            f"{run} is searched by its {len(joint.members)} models: leave out --model and its "
            "options, or give the run of one"
        )
    if options.query_tiles is not None:
        raise UsageError(
            f"{run} is searched by {len(joint.members)} models, which see whole queries: leave out "
            "--query-tiles, or give the run of one"
        )
    if options.refine != "none" and joint.origin:
        raise UsageError(
            f"--refine needs one vector of each image, and {run} was fused by "
            f"{joint.fusion.method}: leave it out, or fuse the runs by concat"
        )
    return gallery, options


def _calibration(
    named: Any, options: SearchOptions, found: Index, where: str
) -> Calibration | None:
    """What --accept says: of a file, of the run that was named, or learned from the gallery."""
    if options.accept is None:
        return None
    accept = Accept.parse(options.accept)
    if not learns_from_items(accept, named):
        return accept.load(named)
    return calibration_of_items(
        vectors_of(found, where, "--accept"), accept, column=options.group_by, source=where,
        seed=options.seed,
    )  # fmt: skip


def _require_decidable(options: SearchOptions) -> None:
    """UsageError if a calibration says nothing of such results."""
    if options.box is not None:
        raise UsageError(
            "--accept decides by a calibration of whole pictures: leave it out, or --box"
        )
    if options.group_score != "best" or options.diverse is not None:
        raise UsageError(
            "--accept decides by the score of one image: leave out --diverse and --group-score"
        )
    if options.query_group is not None and options.query_join != "mean":
        raise UsageError(
            "--accept decides several pictures as one query by the mean of their scores, not by "
            f"--query-join {options.query_join}: give --query-join mean"
        )


def _decided(
    ranked: Callable[[int, ResultForm], Ranking],
    k: int,
    form: ResultForm,
    calibration: Calibration,
    lengths: np.ndarray | None,
    found: Index,
    *,
    whole: int,
) -> Ranking:
    """The first k results of each query, decided by the scores of its first images. ranked: by a
    number and a form. lengths: see `mean_lengths`. found: the gallery, whose labels say which
    cut-off counts. whole: how many images there are."""
    deep = max(k, min(LISTED, whole))
    images = ranked(deep, ResultForm())
    ranking = images if form.group_by is None else ranked(k, form)
    scores, listed = ranking.scores, images.scores
    if lengths is not None and scores is not None and listed is not None:
        scores, listed = scores * lengths[:, None], listed * lengths[:, None]
    return calibration.decide(
        ranking,
        scores=scores,
        listed=listed,
        first_labels=_first_labels(images, calibration, found),
    ).head(k)


def _first_labels(images: Ranking, calibration: Calibration, found: Index) -> list[object] | None:
    """The class of each query's first image; None if no class has a cut-off of its own, or none
    is known."""
    at = np.flatnonzero(images.lengths > 0)
    if not calibration.of_classes or not len(at):
        return None
    known = found.attributes_of([images.gallery[p] for p in images.positions[at, 0]])
    if calibration.class_column not in known.column_names:
        return None
    labels: list[object] = [None] * len(images)
    for i, label in zip(at, known[calibration.class_column].to_pylist(), strict=True):
        labels[i] = label
    return labels


def _gallery_of(ranking: Ranking, found: Index, where: str) -> Embeddings:
    """The vectors of a ranking's gallery, in its order: a filter may have left some out."""
    return vectors_of(found, where).of_images(ranking.gallery)


def _items(queries: Embeddings, options: SearchOptions) -> tuple[dict[str, list[int]] | None, str]:
    """The pictures of each item, if several are one query, and how they are joined."""
    column, join = options.query_group, options.query_join
    if column is None:
        return None, ""
    if options.same_set:
        raise UsageError("--query-group: with --same-set an item's pictures would find each other")
    known = queries.attributes.column_names
    if join == "auto":
        if options.learn_on is None:
            raise UsageError("--query-join auto chooses on labelled images: give --learn-on")
        join = choose_query_join(
            Embeddings.open(options.learn_on), column, optimise=options.optimise
        ).join
    if column == "all" and column not in known:
        return {"all": list(range(len(queries)))}, join
    if column not in known:
        about = "the queries", "put a metadata.csv in their folder"
        error = no_column(f"--query-group {column}", known, *about)
        raise DataError(f"{error}; `all` takes all of them as pictures of one item")
    values = dict(zip(queries.ids, queries.attributes[column].to_pylist(), strict=True))
    return items_of(queries.ids, values, column), join


def open_gallery(gallery: Any, device: str) -> Index:
    """An index, or embeddings as an exact one in memory. UsageError: neither, nor a path."""
    if isinstance(gallery, Embeddings):
        return in_memory(gallery, device=device)
    if not isinstance(gallery, str | Path):
        if hasattr(gallery, "search") and hasattr(gallery, "model_id"):
            index: Index = gallery
            return index
        raise UsageError(
            f"gallery is of type {type(gallery).__name__}: expected an index, embeddings, or the "
            "path of a run, of an index or of embeddings"
        )
    if is_milvus(gallery) or is_index(gallery):
        return open_index(gallery, device=device)
    if not Path(gallery).exists():
        raise DataError(f"{gallery} does not exist: give a run, an index, or embeddings")
    return in_memory(Embeddings.open(gallery), device=device)


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


def embedded_queries(
    queries: Any,
    found: Index,
    *,
    choice: ModelChoice,
    seed: int,
    device: str,
    progress: Report | None,
    box: QueryBox | None = None,
    tiles: Tiles | None = None,
) -> Embeddings:
    """Embeddings as they are; images, or this part of them, and texts by the model of the
    gallery. tiles: of the images, or of these parts."""
    paths = _paths(queries)
    if paths is None:
        return QueryEncoder(found.source, found.model_id, "the gallery").embeddings(
            queries, None, same_set=False, box=box, tiles=tiles,
            embedder=embedder_of(found, choice, seed) if is_chosen(choice) else None,
        )  # fmt: skip
    texts = [path for path in paths if not path.is_dir() and is_text(str(path))]
    folders = [path for path in paths if path.is_dir()]
    if len(paths) > 1 and folders:
        raise UsageError(f"{folders[0]}: several queries must all be image files")
    if is_embeddings(paths[0]):
        if box is not None:
            raise UsageError(f"--box {box} is a part of an image, but {paths[0]} holds embeddings")
        return Embeddings.open(paths[0])
    with waiting(progress, LOADING):
        embedder = embedder_of(found, choice, seed)
    if texts and not embedder.reads_text:
        raise DataError(
            f"there is no file {texts[0]}, and {embedder.name} reads no text: queries are "
            "embeddings, a folder of images, images, or words for a CLIP, SigLIP or PE model"
        )
    if texts:
        return encoded([str(path) for path in paths], embedder.to(device), tiles=tiles)
    if folders:
        images = ImageSet.from_folder(paths[0])
    else:
        names = dict.fromkeys(path.as_posix() for path in paths)
        images = ImageSet(Path(), sorted(names, key=str.encode))
    return embedded_images(images, embedder, device=device, progress=progress, box=box, tiles=tiles)


def _by_all_models(
    joint: JointSearch, embed: Callable[..., Embeddings], gallery: Embeddings
) -> Embeddings:
    """Queries by all models of a joint run, as they are compared with its gallery. embed: gives
    them by the model of a gallery."""
    joint.log_how()

    def by_model_of(member: Member) -> Embeddings:
        own = in_memory(member.embeddings("gallery"))
        return embed(own, choice=ModelChoice(model=str(member.run.folder)))

    return joint.queries(by_model_of, gallery)


def _are_vectors(queries: Any) -> bool:
    """Whether no model is needed for these queries."""
    paths = _paths(queries)
    if paths is not None:
        return is_embeddings(paths[0])
    return isinstance(queries, Embeddings) or images_and_texts(queries) is None


def _paths(queries: Any) -> list[Path] | None:
    """Paths and texts as paths; None for other queries."""
    several = [queries] if isinstance(queries, str | Path) else queries
    if not isinstance(several, Sequence) or not several:
        return None
    return (
        [Path(query) for query in several]
        if all(isinstance(query, str | Path) for query in several)
        else None
    )


def embedded_folder(
    images: ImageSet,
    embedder: Embedder,
    scratch: str,
    compute: ComputeChoice,
    *,
    max_pixels: int,
    progress: Report | None,
) -> Path:
    """The embeddings of images, in the folder `scratch`."""
    resolved = compute_of(compute, embedder, images)
    write_embeddings(
        images, embedder, scratch, compute=resolved, max_pixels=max_pixels, kept=False,
        cache=shared_cache(compute.cache, len(images)),
        progress=progress and partial(progress, "embedding"),
    )  # fmt: skip
    return Path(scratch)


def embedder_of(found: Index, choice: ModelChoice, seed: int) -> Embedder:
    """The model of a gallery: the one that it records, unless another one was chosen."""
    model: Any = choice.model
    if isinstance(model, Embedder):
        require_comparable(model.model_id, found.model_id, model.dim, found.dim)
        return model
    if found.source.model is not None and not is_chosen(choice):
        return recorded_embedder(found.source.model, found.model_id, "the gallery")
    require_weights(choice.model, choice.weights)
    embedder = load_embedder(choice, seed=seed)
    if embedder.model_id != found.model_id:
        raise DataError(
            f"{choice.model} is model {embedder.model_id} here, the gallery was embedded by "
            f"{found.model_id}: give the --model, --weights, --pooling and --image-size of the "
            "gallery"
        )
    return embedder


# ── re-ranking ───────────────────────────────────────────────────────────────────────────────────


def chain_of(
    refine: str,
    uses: str,
    learn_on: Path | None,
    validate_on: str | None,
    *,
    optimise: str = "mean",
    queries: Embeddings,
    gallery: Callable[[], Embeddings],
    progress: Report | None,
    joining: bool = False,
    same_set: bool = False,
) -> tuple[Chain, RefinementChoice | None]:
    """The chain that was given, or chosen on the labelled embeddings of --learn-on. joining: these
    also decide how query pictures are joined."""
    if refine != "auto":
        if validate_on or (learn_on and not joining):
            raise UsageError("--learn-on and --validate-on are for --refine auto: leave them out")
        return parse_chain(refine, uses=uses), None
    if learn_on is None:
        raise UsageError(
            "--refine auto chooses on labelled images: give --learn-on EMBEDDINGS of training "
            "images (vizsla embed data/training --class-folders -o training.emb), or name a chain"
        )
    training = Embeddings.open(learn_on)
    require_comparable(queries.model_id, training.model_id, queries.dim, training.dim)
    if validate_on in (None, AUTO):
        validate_on = validate_on_by_vectors(
            training, [queries.vectors, gallery().only_whole().vectors]
        )
    choice = choose_chain_on_embeddings(
        training, queries, gallery(), validate_on=validate_on, same_set=same_set,
        optimise=optimise, uses=uses,
        progress=progress and partial(progress, STAGE),
    )  # fmt: skip
    return choice.chain, choice


def vectors_of(found: Index, where: str, flag: str = "--refine") -> Embeddings:
    """The gallery's vectors; UsageError if they are on a server."""
    if not isinstance(found, FolderIndex):
        raise UsageError(
            f"{flag} needs the gallery's vectors here, and those of {where} are on a server: "
            "leave it out"
        )
    return found.embeddings()


def search_refined(
    found: Index,
    where: str,
    queries: Embeddings,
    chain: Chain,
    k: int,
    condition: Filter | None = None,
    *,
    form: ResultForm = ResultForm(),  # noqa: B008 (frozen)
    same_set: bool,
    device: str,
    progress: Callable[[int, int], None] | None,
) -> Ranking:
    """The gallery of an index by a chain. The neighbour graph is kept in the index, or beside the
    embeddings; with a condition it is that of the images allowed, and not kept. Local features
    are always kept there."""
    gallery = vectors_of(found, where)
    if chain.verify:
        opencv()  # before the work: an error if it is not installed
    kept_in = folder_of(where)
    keeper: Keeper | None = GraphFolder(Path(where))
    if is_index(where) and isinstance(found, FolderIndex):
        keeper = found
    if condition is not None:
        rows = np.flatnonzero(condition.mask(gallery.ids, gallery.attributes))
        gallery, keeper = gallery.subset(rows), None
        k = min(k, len(gallery))
    compares_pairs = all(step.name in AFTER for step in chain.steps)
    if len(gallery) < (1 if compares_pairs else 2):
        loosen = "" if condition is None else "loosen --filter, or "
        raise UsageError(f"--refine {chain} among {len(gallery)} images: {loosen}leave it out")
    whole = form.group_by is not None or form.diverse is not None
    ranking = rank_refined(
        queries, gallery, chain, len(gallery) - same_set if whole else k, same_set=same_set,
        device=device, graphs=keeper, features=features_of_both(queries, gallery, kept_in),
        progress=progress,
    )  # fmt: skip
    return regrouped(ranking, gallery, k, form) if whole else ranking
