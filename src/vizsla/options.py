"""Every option that several commands share: fields of typed dataclasses.

The command line and `--config FILE` (cli/parameters.py), saved configurations and the table of
docs/options.md are made from these fields. An option of one command is a field of the dataclass
above its function in cli/. Imports nothing heavy, so that `--help` answers at once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.errors import UsageError
from vizsla.option_fields import (
    Options,
    acceptance,
    fusion_weights,
    option,
    same,
    seconds,
)

DEFAULT_BACKBONE = "efficientnet-lite0"  # its weights come with the package
FINETUNES = ("none", "head", "last", "full", "lora")
POOLINGS = ("gap", "gem", "max", "cls", "native", "stages")
FRAMINGS = COVER, SQUASH = "cover", "squash"  # how much of an image a network sees
WHITENINGS = ("none", "plain", "shrunk")
FUSION_WHITENINGS = (  # the last ones use the training images' classes
    "auto", *WHITENINGS, "centred", "whitened 0.9", "whitened 0.6", "discriminant 0.6",
    "discriminant 0.3", "classes 0.3", "classes 0.1",
)  # fmt: skip
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
TEACHER = "teacher"  # the term of --loss that takes a teacher's vectors
OPTIMISED = {  # what validation compares: name → its values, 0…1
    "mean": "the mean of top-1 and AP",
    "points": "contest points over 1000",
    "top-1": "top-1",
    "map": "AP",
}


@dataclass(frozen=True, kw_only=True)
class Messages(Options):
    """Which messages are printed on standard error."""

    quiet: bool = option(False, "Print errors only.", "Output", "-q", "--quiet")
    verbose: bool = option(False, "Print more messages.", "Output", "-v", "--verbose")


@dataclass(frozen=True, kw_only=True)
class Printing(Messages):
    """How a command prints its result."""

    as_json: bool = option(
        False, "Print the result as JSON on standard output.", "Output", "--json"
    )


@dataclass(frozen=True, kw_only=True)
class Reporting(Options):
    """Whether a function reports how far it is. The command line always does."""

    progress: bool | Callable[..., None] | None = option(
        None,
        "True shows bars, False none, None: in notebooks only; or a function of (stage, done, "
        "total), for embed of (done, total).",
        "Output",
    )


@dataclass(frozen=True, kw_only=True)
class ExifColumns(Options):
    """Which columns come from the images themselves."""

    exif: bool = option(
        False, "Add the columns taken, camera, latitude and longitude, from EXIF.", "Data"
    )


@dataclass(frozen=True, kw_only=True)
class VectorFiles(Options):
    """How vectors are stored."""

    store: str = option(
        "fp32", "Store vectors as fp32, or as fp16 at half the size.", "Output",
        choices=("fp32", "fp16"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Page(Options):
    """A page beside the result."""

    html: Path | None = option(None, "Also write an HTML page.", "Output")


@dataclass(frozen=True, kw_only=True)
class ShownColumns(Options):
    """Which columns of the images a page or table shows."""

    show: tuple[str, ...] = option(
        (), "A column to show of each image, such as price. Repeatable.", "Output",
        shown="label and group", usual=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OneSet(Options):
    """Whether queries and gallery are one set."""

    same_set: bool = option(
        False,
        "Queries and gallery are one set: leave out each query's own image.",
        "Data",
        usual=True,
    )


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Options):
    """Which embedder: a backbone with its weights, pooling and preprocessing, or a saved one."""

    model: str = option(
        DEFAULT_BACKBONE,
        "A backbone's name (`vizsla models` lists them), a saved embedder, or a run.",
        "Model",
        usual=True,
    )
    weights: str = option(
        "pretrained",
        "pretrained, random, or a file (safetensors, or of torch.save).",
        "Model",
        usual=True,
    )
    pooling: str | None = option(
        None, "{choices}.", "Model", shown="the model's", usual=True, choices=POOLINGS
    )
    image_size: int | None = option(
        None, "Side of the square input, in pixels.", "Model", shown="the weights' own", minimum=1
    )
    interpolation: str | None = option(
        None,
        "How images are resized: bilinear, bicubic, …; if the weights file was trained with it.",
        "Model",
        shown="the named model's own",
        rare=True,
    )
    framing: str | None = option(
        None,
        "How much of an image is seen. cover: all but the ends of the longer side; squash: all of "
        "it, in the frame's aspect ratio.",
        "Model",
        shown="as the weights were trained; most cut off a border",
        choices=FRAMINGS,
    )
    views: str | None = option(
        None,
        "Average the vectors of several views of each image: flip, scales or both, such as "
        "'flip,1,0.7,1.4'.",
        "Model",
        shown="one, or the saved embedder's",
    )
    tiles: str | None = option(
        None,
        "A vector of each part of a gallery image, such as '1+2x2+3x3' (grids, across x down); an "
        "image is found by its best part. auto: what labelled images prefer.",
        "Model",
        shown="the whole image, or the saved embedder's",
    )


@dataclass(frozen=True, kw_only=True)
class WhiteningChoice(Options):
    """What is fitted to the vectors of training images and kept in the embedder."""

    whiten: str = option(
        "none",
        "Whiten vectors: {choices} (for few images); fitted on training images.",
        "Model",
        choices=WHITENINGS,
    )
    dim: int | None = option(
        None,
        "Dimensions of the vectors, reduced by PCA on training images.",
        "Model",
        shown="all",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """Which images of a folder are read, and what is known of them."""

    labels: str | None = option(
        None,
        "The truth: a CSV or Parquet table with the columns label and file.",
        "Data",
        shown="labels.csv in DATA",
        usual=True,
    )
    labels_from: str | None = option(None, "Labels from file names: '{label}_{n}'.", "Data")
    exclude: str | None = option(None, "A file that lists images to leave out.", "Data")
    max_pixels: int = option(
        100_000_000, "Images with more pixels count as broken.", "Data", minimum=1, rare=True
    )
    follow_links: bool = option(
        False, "Follow links that lead out of the folder.", "Data", rare=True
    )


@dataclass(frozen=True, kw_only=True)
class ImageTable(ImageOptions):
    """The images of a folder, with the columns of a table."""

    labels: str | None = same(
        ImageOptions, "labels", flags=("--table", "--labels"), shown=None,
        help="A table of the images (CSV, Parquet, …): all its columns stay with them, and `label` "
        "is their class.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableImages(Options):
    """Where the images of a table are."""

    root: Path | None = option(
        None, "The folder that the names in a table of images are relative to.", "Data",
        shown="the table's",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SeveralLabels(Options):
    """Whether an image has several labels."""

    label_separator: str | None = option(
        None, "An image may have several labels, with this between them, such as '|'.", "Data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_separator is not None and not self.label_separator.strip():
            raise UsageError("--label-separator is empty: give what is between two labels")


@dataclass(frozen=True, kw_only=True)
class JudgedLabels(SeveralLabels):
    """When two labels are equal."""

    label_level: int | None = option(
        None,
        "Labels are paths, such as animal/dog/vizsla; relevant with so many levels in common.",
        "Data",
        minimum=1,
    )
    grades_from: str | None = option(
        None,
        "A column of whole numbers in the labels file: how relevant an image is where it is, for "
        "nDCG(grades).",
        "Data",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeChoice(Options):
    """What vectors are computed with; each `auto` is resolved once and written down."""

    device: str = option("auto", "auto, cpu, cuda, mps.", "Speed", usual=True)
    precision: str = option(
        "auto", "{choices} (int8: efficientnet-lite0 on a CPU).", "Speed",
        choices=PRECISIONS,
    )  # fmt: skip
    runtime: str = option(
        "auto",
        "What computes the network: {choices} (compiled: by torch); auto: the fastest for so many "
        "images.",
        "Speed",
        choices=("auto", "torch", "compiled", "openvino", "onnx"),
    )
    batch_size: int | str = option(
        "auto", "Images in a batch; auto: by the GPU's memory, 32 on a CPU.", "Speed"
    )
    workers: int | None = option(
        None, "Threads or processes that decode images.", "Speed", shown="by cores", minimum=1
    )
    cache: str | None = option(
        None, "A folder that keeps vectors, so that no image is embedded twice.", "Speed"
    )


@dataclass(frozen=True, kw_only=True)
class RankingOptions(Options):
    """How a gallery is ranked."""

    refine: str = option(
        "none",
        "none; auto: chosen on validation images; or a chain such as 'aqe+kreciprocal(k1=20)' of "
        "dba, aqe (expand gallery, queries), kreciprocal, diffusion, balance (re-rank), maxsim, "
        "verify (compare tokens, or points, of the first n; verify needs OpenCV). Contests may "
        "forbid what these use: docs/refine.md.",
        "Ranking",
    )
    refine_uses: str = option(
        "queries",
        "Test images that --refine may use: queries (and gallery), gallery, or nothing.",
        "Ranking",
        choices=("queries", "gallery", "nothing"),
    )


@dataclass(frozen=True, kw_only=True)
class QueryTiles(Options):
    """Of which parts of a query picture there is a vector."""

    query_tiles: str | None = option(
        None, "Search with parts of the picture too, such as 1+2x2: the mean, over these, of their "
        "best match in an image.", "Data", shown="the whole picture",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Accepting(Options):
    """Which matches are accepted; the others, or all of a query, are `none of these`."""

    accept: float | str | None = option(
        None,
        "Accept only matches that are right with this probability, such as 0.95, learned on "
        "training images (docs/decide.md); or a calibration: FILE, FILE@0.9.",
        "Ranking",
        shown="all",
        usual=True,
        parse=acceptance,
    )


@dataclass(frozen=True, kw_only=True)
class FusionOptions(Options):
    """How several models' rankings become one."""

    fusion: str = option(
        "zscore",
        "How several models are joined: zscore, minmax (of scores), rrf (of ranks), calibrated (of "
        "probabilities, learned on training images), concat (of vectors), or auto: what is best on "
        "validation images, but concat.",
        "Ranking",
        choices=("zscore", "minmax", "rrf", "calibrated", "concat", "auto"),
    )
    fusion_weights: str | list[float] | None = option(
        None,
        "One weight for each model, such as 0.5,0.3,0.2; auto: chosen on validation images.",
        "Ranking",
        shown="equal",
        parse=fusion_weights,
    )
    fusion_whiten: str = option(
        "auto",
        "Projection of concatenated vectors: {choices}; fitted to training images, from `whitened` "
        "on by their classes. auto: what validation prefers.",
        "Ranking",
        choices=FUSION_WHITENINGS,
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class GradedTruth(Options):
    """A truth that is a list of judgements, in place of labels."""

    truth: str | None = option(
        None,
        "A table query,image,grade, or the truth of Oxford and Paris (gnd_….json, .pkl).",
        "Data",
    )
    truth_level: str | None = option(
        None, "Which of the truths in --truth, if it has several.", "Data",
        shown="the protocol's, or medium",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetricChoice(Options):
    """Which metrics are computed, and by whose rules."""

    metrics: str | None = option(
        None,
        "Metrics by name, such as 'AP@100,mINP,nDCG(grades)@10' (docs/metrics.md).",
        "Scores",
        shown="the usual ones",
    )
    protocol: str | None = option(
        None,
        "Score as a paper does, such as oxford-medium (`vizsla protocols` lists them).",
        "Scores",
    )


@dataclass(frozen=True, kw_only=True)
class ItemScores(Options):
    """Whether items are scored: groups of gallery images, several query pictures of one thing."""

    group_by: str | None = option(
        None, "Score groups of gallery images by a column, such as product.", "Scores",
    )  # fmt: skip
    query_group: str | None = option(
        None, "A column of the queries, such as item: its pictures are scored as one query.",
        "Scores",
    )  # fmt: skip
    query_join: str = option(
        "mean", "How the scores of an item's pictures are joined: {choices}.", "Scores",
        choices=("mean", "max"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_query_group(self.query_group, self.query_join)


@dataclass(frozen=True, kw_only=True)
class RunOptions(
    ModelChoice,
    WhiteningChoice,
    ImageOptions,
    JudgedLabels,
    GradedTruth,
    MetricChoice,
    ComputeChoice,
    RankingOptions,
    QueryTiles,
    Accepting,
    ItemScores,
):
    """The options of `vizsla run`, without those of training and fusion."""

    group_by: str | None = same(
        ItemScores, "group_by",
        help="Also score groups of gallery images by a column, such as product.",
    )  # fmt: skip
    query_group: str | None = same(
        ItemScores, "query_group",
        help="Also score items by a column of the queries: an item's pictures are one query.",
    )  # fmt: skip
    top_k: int = option(
        10,
        "Images per query in the submission and on the sheets.",
        "Ranking",
        "-k",
        "--top-k",
        minimum=1,
        usual=True,
    )
    seed: int = option(0, "Seed of random weights and random choices.", "Speed")
    figures: int = option(20, "Query sheets to draw; -1: all.", "Output", minimum=-1)
    home: str = option(
        ".", "The folder for results/, submissions/, visualizations/, runs/.", "Output", usual=True
    )


@dataclass(frozen=True, kw_only=True)
class Conditions(Options):
    """Which images of a gallery."""

    filter: tuple[str, ...] = option(
        (),
        "Only images with label=shoe, label=shoe|hat, 'price<10', label=null, id=@names.txt, … "
        "Repeatable: all conditions must hold.",
        "Data",
        usual=True,
    )


@dataclass(frozen=True, kw_only=True)
class GroupOptions(Options):
    """What one result is: an image, or a group of images."""

    group_by: str | None = option(
        None, "One result for each value of a column, such as product: the group's best image.",
        "Ranking", shown="every image is one", usual=True,
    )  # fmt: skip
    per_group: int = option(1, "Images of each group to give.", "Ranking", minimum=1)
    group_score: str = option(
        "best", "Score of a group: {choices} (the mean of two images).", "Ranking",
        choices=("best", "best-two"),
    )  # fmt: skip
    diverse: float | None = option(
        None,
        "Results that differ from each other (maximal marginal relevance): from 1, off, to 0.",
        "Ranking", minimum=0, maximum=1, shown="off",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QueryItems(Options):
    """Whether several query pictures show one item."""

    query_group: str | None = option(
        None, "A column of the queries, such as item: its pictures are one query. `all`: all are.",
        "Ranking", shown="each picture is a query",
    )  # fmt: skip
    query_join: str = option(
        "mean", "How an item's pictures are joined: {choices} (mean of vectors, highest score; "
        "auto: by validation on --learn-on).", "Ranking", choices=("mean", "max", "auto"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_query_group(self.query_group, self.query_join)


def _require_query_group(column: str | None, join: str) -> None:
    if column is None and join != "mean":
        raise UsageError(f"--query-join {join} joins the pictures of items: add --query-group")


@dataclass(frozen=True, kw_only=True)
class QueryPart(QueryTiles):
    """Which part of a query picture is searched with."""

    box: str | None = option(
        None, "Search with this part of the picture: left,top,width,height in pixels, or as "
        "fractions of its sides (0.1,0.1,0.5,0.5).", "Data", shown="the whole picture",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GalleryOptions(ModelChoice, ImageOptions, ComputeChoice, Accepting):
    """The options of `vizsla serve` that say what is searched, and with which model."""

    accept: float | str | None = same(
        Accepting, "accept",
        help="Grey out results that are not right with this probability, such as 0.8, by the "
        "calibration of the run that is served, or learned from items with several pictures; or by "
        "a FILE, or FILE@0.9.",
        shown="no decisions", usual=False,
    )  # fmt: skip

    model: str | None = same(  # type: ignore[assignment]
        ModelChoice, "model", None,
        help="The model that embeds queries.",
        shown=f"the run's own; {DEFAULT_BACKBONE} for a folder",
    )  # fmt: skip
    labels: str | None = same(
        ImageTable, "labels", shown="the source's own",
    )  # fmt: skip
    images: str | None = option(None, "The folder of the gallery's images.", "Data", usual=True)
    class_folders: bool = option(False, "Labels are the names of the folders.", "Data")
    show: tuple[str, ...] = option(
        (), "A column on each result and first among the filters, such as price. Repeatable.",
        "Output",
    )  # fmt: skip
    max_pixels: int = same(
        ImageOptions, "max_pixels", 40_000_000, help="Largest query image in pixels."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """How a network is trained; see docs/training.md. None and "auto" are resolved in `train`.

    budget: seconds for everything from the first image read to the saved embedder; without it
    `epochs` count.
    """

    finetune: str = option(
        "last", "What is trained: {choices}.", "Training", usual=True, choices=FINETUNES
    )
    blocks: int | None = option(
        None, "Blocks that --finetune last trains.", "Training", shown="7 in 10",
        minimum=1, rare=True,
    )  # fmt: skip
    loss: str = option(
        "cross-entropy+0.5*supcon",
        "A loss or a weighted sum of losses, such as arcface.",
        "Training",
    )
    teacher: str | None = option(
        None, "Also learn which images a better model finds alike: a model's name, a saved "
        "embedder, a run, or embeddings of the training images. Its weight is that of the term "
        "teacher in --loss, 1 if it is not there.", "Training",
    )  # fmt: skip
    miner: str | None = option(
        None, "Miner of pairs or triplets: {choices}.", "Training", rare=True,
        choices=("all", "semihard", "hard", "batch-hard", "easy-positive", "multi-similarity"),
    )  # fmt: skip
    memory: int = option(
        0, "Vectors of past batches that pair losses use; 0: none.", "Training", rare=True
    )
    batches: str = option(
        "auto", "How batches are drawn: plain, balanced, classes; auto: classes for pair losses, "
        "else plain.", "Training", rare=True, choices=("auto", "plain", "balanced", "classes"),
    )  # fmt: skip
    per_class: int = option(4, "Images of a class in a batch of classes.", "Training", rare=True)
    batch_size: int = option(32, "Images in a batch.", "Training")
    micro_batch: int | None = option(
        None,
        "Images that pass through the network at once.",
        "Training",
        shown="by memory",
        rare=True,
    )
    augment: str = option(
        "light", "Augmentation: {choices}.", "Training",
        choices=("none", "light", "medium", "strong"),
    )  # fmt: skip
    train_size: int | None = option(
        None,
        "Side of the training input, in pixels.",
        "Training",
        shown="a little less than the model's",
        rare=True,
    )
    dim: int | None = option(
        None, "Dimensions of the projection.", "Training", shown="the backbone's", rare=True
    )
    learning_rate: float = option(
        1e-4, "Learning rate of the last block; it falls with depth.", "Training",
        shown="by --validate-on", rare=True,
    )  # fmt: skip
    head_learning_rate: float = option(
        1e-3, "Learning rate of the projection.", "Training", rare=True
    )
    head_steps: int = option(
        240, "Steps of training the projection.", "Training", minimum=1, rare=True
    )
    layer_decay: float = option(
        0.85, "Factor of the learning rate from block to block.", "Training", rare=True
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.", "Training", rare=True)
    warmup: float = option(
        0.1, "Share of the steps in which learning rates rise.", "Training", rare=True
    )
    clip: float = option(
        5.0, "Gradients are clipped to this norm; 0: never.", "Training", rare=True
    )
    ema_decay: float = option(
        0.99, "Decay of the moving average of weights; 0: none is kept.", "Training", rare=True
    )
    batch_norm: str = option(
        "frozen",
        "Statistics of batch norms: {choices}.",
        "Training",
        rare=True,
        choices=("frozen", "trained"),
    )
    checkpointing: bool = option(
        False, "Gradient checkpointing: less memory, more time.", "Training", rare=True
    )
    epochs: float = option(
        10.0, "Passes over the training images, if no --budget is given.", "Training"
    )
    short_epochs: float = option(
        0.0, "Epochs of a short training that is tried first; 0: none.", "Training",
        shown="by --validate-on", rare=True,
    )  # fmt: skip
    budget: float | None = option(
        None, "Time for the whole training, with its unit: 90s, 30m, 1.5h.", "Training",
        parse=seconds, usual=True,
    )  # fmt: skip
    precision: str = option(
        "auto",
        "Precision of training: fp32 or bf16; auto: bf16 if the device has it.",
        "Training",
        choices=("auto", "fp32", "bf16"),
    )
    device: str = same(ComputeChoice, "device")
    workers: int | None = same(ComputeChoice, "workers")
    max_pixels: int = same(ImageOptions, "max_pixels")
    tensorboard: bool = option(False, "Also log for TensorBoard (an extra).", "Training", rare=True)
    seed: int = same(RunOptions, "seed")
    save_seconds: float = option(
        60.0, "Longest time between two checkpoints, in seconds.", "Training", minimum=0, rare=True
    )
    real_weights: bool = True  # False for random ones, of which nothing is expected
    replay: dict[str, Any] | None = None  # what the clock decided in the training to repeat

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.batch_size < 2
            or self.epochs <= 0
            or self.short_epochs < 0
            or (self.budget or 1) <= 0
        ):
            raise UsageError(
                f"batch size {self.batch_size}, {self.epochs} epochs, short_epochs "
                f"{self.short_epochs}, budget {self.budget}: choose a batch of 2 images or more, "
                "epochs and budget above 0, short_epochs of 0 or more"
            )
        if self.teacher is not None and self.finetune == "none":
            raise UsageError(
                f"--teacher {self.teacher} trains a student: add --finetune head, last or full"
            )
        if self.memory and self.memory < self.batch_size:
            raise UsageError(
                f"--memory {self.memory} is less than a batch of {self.batch_size}: choose more"
            )


# Test classes that are new lose by what the training classes gain beyond some point.
BY_VALIDATION: Mapping[str, Mapping[str, Any]] = {
    "auto": {"learning_rate": 1e-4, "short_epochs": 2.5},
    "new-classes": {"learning_rate": 1e-4, "short_epochs": 2.5},
    "seen-classes": {"learning_rate": 2e-4, "short_epochs": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainConfig):
    """How a model is tuned, and how validation imitates the test part."""

    validate_on: str = option(
        "auto",
        "What is held out: new-classes (whole classes), seen-classes (images of every class), or "
        "auto: by whether the test images look like those of training classes.",
        "Training",
        choices=("new-classes", "seen-classes", "auto"),
    )
    split_by: str | None = option(
        None, "Keep the images of one session (time) or place on one side of the split, by EXIF or "
        "the columns taken, latitude, longitude.", "Training", choices=("time", "place"),
        shown="the column group",
    )  # fmt: skip
    query_domain: str | None = option(
        None, "Domain of the validation queries.", "Training", rare=True
    )
    gallery_domain: str | None = option(
        None, "Domain of the validation gallery.", "Training", rare=True
    )
    optimise: str = option(
        "mean",
        "What decides on validation, in training, re-ranking and fusion: mean (of top-1 and AP), "
        "points, top-1 or map.",
        "Training",
        choices=tuple(OPTIMISED),
    )
    draws: int = option(
        3, "Number of random draws of the validation queries.", "Training", rare=True
    )
    share: float | None = option(
        None, "Share of the training images that is held out, at most.", "Training", rare=True,
        shown="0.2; 0.4 of seen classes with few images each",
    )  # fmt: skip

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> "TuneConfig":
        """From the options that were given, by name; UsageError for unknown names.

        The defaults of `learning_rate` and `short_epochs` depend on `validate_on`.
        """
        known = {f.name for f in dataclasses.fields(TuneConfig)}
        if unknown := sorted(set(options) - known):
            raise UsageError(
                f"no option of training is called {', '.join(unknown)}: there are "
                f"{', '.join(sorted(known))}"
            )
        if options.get("budget") is not None and "epochs" in options:
            raise UsageError(
                f"--epochs {options['epochs']} and --budget {options['budget']:g}s: a training "
                "ends after so many epochs or after so much time, so give one of them"
            )
        validate_on = str(options.get("validate_on", "auto"))
        loss = str(options.get("loss", TuneConfig.loss))
        if options.get("teacher") is not None and TEACHER not in loss:
            options = {**options, "loss": f"{loss}+{TEACHER}"}
        return TuneConfig(**{**BY_VALIDATION.get(validate_on, {}), **options})


@dataclass(frozen=True, kw_only=True)
class BestOptions(ImageOptions, SeveralLabels, GradedTruth, MetricChoice):
    """What `vizsla best` searches over, and for how long."""

    model: tuple[str, ...] = same(
        ModelChoice, "model", (), shown="all that can be had",
        help="Only these: a backbone's name, a saved embedder or a run. Repeatable.",
    )  # fmt: skip
    weights: tuple[str, ...] = same(
        ModelChoice, "weights", ("pretrained",),
        help="pretrained or a file; one for all models, or one for each.",
    )  # fmt: skip
    budget: float = option(
        600.0, "Time for everything, with its unit: 90s, 10m, 1.5h.", "Training",
        parse=seconds, shown="10m", usual=True,
    )  # fmt: skip
    validate_on: str = same(TuneConfig, "validate_on", "auto")
    split_by: str | None = same(TuneConfig, "split_by")
    optimise: str = same(TuneConfig, "optimise")
    refine_uses: str = same(RankingOptions, "refine_uses")
    top_k: int = same(RunOptions, "top_k")
    device: str = same(ComputeChoice, "device")
    workers: int | None = same(ComputeChoice, "workers")
    cache: str | None = same(ComputeChoice, "cache", shown="a folder of its own")
    seed: int = same(RunOptions, "seed")
    figures: int = same(RunOptions, "figures")
    home: str = same(RunOptions, "home")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(
    ModelChoice, RankingOptions, GroupOptions, QueryItems, QueryPart, Accepting, OneSet, Conditions
):
    """How a gallery is searched."""

    accept: float | str | None = same(
        Accepting, "accept",
        help="Accept only matches that are right with this probability, such as 0.8, by the "
        "calibration of the run that is searched, or learned from items with several pictures; or "
        "by a FILE, or FILE@0.9.",
    )  # fmt: skip

    top_k: int | None = same(
        RunOptions, "top_k", None, help="Images per query.", shown="10, or all if there are fewer"
    )
    seed: int = same(RunOptions, "seed")
    learn_on: Path | None = option(
        None,
        "For --refine auto and --query-join auto: embeddings of labelled images that the model was "
        "not trained on (embedded with --class-folders).",
        "Ranking",
    )
    validate_on: str | None = same(TuneConfig, "validate_on", None, group="Ranking", shown="auto")
    optimise: str = same(
        TuneConfig, "optimise", group="Ranking",
        help="What decides for --refine auto and --query-join auto: mean (of top-1 and AP), "
        "points, top-1 or map.",
    )  # fmt: skip
    device: str = same(ComputeChoice, "device", "cpu", usual=False)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Page):
    """How images are clustered, and what is written."""

    method: str = option(
        "graph", "How images are joined: {choices}.", "Ranking", usual=True,
        choices=("graph", "agglomerative", "hdbscan"),
    )  # fmt: skip
    cut_off: float | None = option(
        None, "Least similarity at which clusters are joined; of hdbscan: fewest images of one.",
        "Ranking", usual=True, minimum=0, shown="learned, see docs/cluster.md",
    )  # fmt: skip
    learn_on: Path | None = same(
        SearchOptions, "learn_on", usual=True,
        help="Embeddings of other, labelled images, on which the cut-off is learned.",
    )  # fmt: skip
    known: Path | None = option(
        None, "Labels of some of the images: each label becomes one cluster, two never join.",
        "Data", usual=True,
    )  # fmt: skip
    labels: str | None = same(
        ImageOptions, "labels", shown="those stored with the images",
        help="Labels to score the clusters against; never used to find them.",
    )  # fmt: skip
    images: Path | None = option(
        None, "The folder of the images, for the page.", "Data", shown="the recorded one"
    )
    out: Path | None = option(
        None, "Write a table of image, cluster, label (CSV).", "Output", "-o", "--out", usual=True
    )
    html: Path | None = same(
        Page, "html", usual=True, help="Write a page to merge, split and name the clusters.",
    )  # fmt: skip
    seed: int = same(RunOptions, "seed")
    device: str = same(ComputeChoice, "device", "cpu", usual=False)


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ModelChoice, ImageTable, ComputeChoice, Page):
    """What is looked for, and written."""

    model: str | None = same(  # type: ignore[assignment]
        ModelChoice, "model", None, help="Also find doubtful labels, with this model.", shown=None
    )
    labels: str | None = same(ImageTable, "labels", shown="labels.csv in DATA")
    partial: bool = option(
        False, "Also find crops, collages, screenshots and overlays of other images, also "
        "mirrored; needs OpenCV.", "Data", usual=True,
    )  # fmt: skip
    cache: str | None = same(
        ComputeChoice, "cache", help="A folder that keeps vectors, and points for --partial."
    )
    seed: int = same(RunOptions, "seed")
    keep: str = option(
        "largest", "Which image of a group of copies should stay: {choices}.", "Data",
        choices=("largest", "sharpest", "earliest", "lossless"),
    )  # fmt: skip
    group_by: str | None = option(
        None, "The column that names the item of each image: copies between different items are "
        "reported, and each item keeps one.", "Data",
        shown="without labels, product, sku, item, … if there is one",
    )  # fmt: skip
    out: Path | None = option(
        None, "Also write the findings there (JSON).", "Output", "-o", "--out", usual=True
    )
    write_exclude: Path | None = option(
        None, "Write a list of images to leave out, for --exclude of `run`.", "Output", usual=True
    )


@dataclass(frozen=True, kw_only=True)
class FindOptions(ModelChoice, ImageTable, ComputeChoice, QueryPart):
    """What `vizsla find` searches with."""

    box: str | None = same(QueryPart, "box", usual=True)
    top_k: int = same(RunOptions, "top_k", help="Images to show.")
    seed: int = same(RunOptions, "seed")
    cache: str | None = same(
        ComputeChoice, "cache", help="The folder that keeps the vectors.", shown="the user's cache"
    )
