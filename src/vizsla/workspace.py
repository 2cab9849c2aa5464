"""The folders that a run writes: results/, submissions/, visualizations/, runs/<run id>/.

Knows folders and JSON, nothing of images or scores.
"""

import datetime
import json
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import DataError, StorageError

SECONDS = " (seconds)"  # at the end of a stage's name whose progress counts them
SUBMITTED = "submissions.jsonl"  # in a run's folder: what a contest's server answered
PROJECTION = "projection.safetensors"  # in a run's folder, of several models' joined vectors
RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")


@dataclass(frozen=True)
class Run:
    """One run. Results, submissions and figures of all runs share folders below `home`."""

    home: Path
    id: str

    @property
    def folder(self) -> Path:
        """<home>/runs/<id>, which holds the run's artefacts."""
        return self.home / "runs" / self.id

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration: every `auto` replaced by what was chosen."""
        return storage.read_sealed_json(self.folder / "config.json")

    def write_config(self, config: dict[str, Any]) -> None:
        """Stores the resolved configuration, which `config` reads."""
        storage.write_sealed_json(self.folder / "config.json", config)

    def result_path(self, model_name: str) -> Path:
        """Where the result file (JSON) of this model belongs."""
        return self.home / "results" / f"{file_safe(model_name)}_metrics_{self.id}.json"

    @property
    def result_file(self) -> Path | None:
        """The result file that this run left; None if it was interrupted."""
        found = sorted((self.home / "results").glob(f"*_metrics_{self.id}.json"))
        return found[0] if found else None

    @property
    def judge_score(self) -> float | None:
        """What a contest's server answered to the latest submission; None if none was sent."""
        path = self.folder / SUBMITTED
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        return float(json.loads(lines[-1])["accuracy"]) if lines else None

    def submission_path(self, model_name: str) -> Path:
        """Where the submission (JSON) of this model belongs."""
        return self.home / "submissions" / f"sub_{file_safe(model_name)}_{self.id}.json"

    def figures_folder(self, model_name: str) -> Path:
        """The folder of this model's contact sheets and charts."""
        return self.home / "visualizations" / f"{file_safe(model_name)}_{self.id}"


def create_run(home: str | Path = ".") -> Run:
    """A new run with an empty folder of its own."""
    home = Path(home)
    for _ in range(100):
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        run = Run(home, f"{stamp}-{secrets.token_hex(2)}")
        try:
            run.folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage.storage_error("write", run.folder, error) from error
        return run
    raise StorageError(f"cannot make a new folder in {home / 'runs'}: a hundred ids were taken")


def open_run(folder: str | Path) -> Run:
    """The run whose folder this is; DataError when it is not one."""
    folder = Path(folder)
    if not is_run(folder):
        raise DataError(
            f"{folder} is not a run: expected a folder like runs/20260131-235959-0a1b "
            "with a config.json inside"
        )
    return Run(folder.parent.parent, folder.name)


def is_run(folder: str | Path) -> bool:
    """Whether the folder has a run's name and configuration."""
    folder = Path(folder)
    return RUN_ID.fullmatch(folder.name) is not None and (folder / "config.json").is_file()


def result_file_of(source: str | Path) -> Path:
    """The result file of a run's folder; any other path as it is. DataError: the run left none."""
    if not is_run(source):
        return Path(source)
    found = open_run(source).result_file
    if found is None:
        raise DataError(f"{source} left no result: it was interrupted; run it again")
    return found


def ranking_in(folder: str | Path) -> Path:
    """The ranking file of a run; DataError if the run wrote none."""
    path = Path(folder) / "ranking.parquet"
    if not path.exists():
        raise DataError(f"{folder} has no ranking: the run was interrupted, or is not finished")
    return path


def submission_in(folder: str | Path) -> Path:
    """The submission that a run wrote, or the newest one in a folder of submissions."""
    folder = Path(folder)
    if not is_run(folder):
        files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
        if not files:
            raise DataError(f"{folder} holds no submissions: make one with `vizsla run DATA`")
        return max(files, key=lambda path: path.stat().st_mtime)
    run = open_run(folder)
    found = sorted((run.home / "submissions").glob(f"sub_*_{run.id}.json"))
    if not found:
        raise DataError(f"{folder} has no submission in {run.home / 'submissions'}")
    return found[0]


def run_of_submission(path: str | Path) -> Path | None:
    """The folder of the run that wrote this submission, if it still exists."""
    path = Path(path).absolute()
    ids = RUN_ID.findall(path.name)
    folder = path.parent.parent / "runs" / ids[-1] if ids else None
    return folder if folder and is_run(folder) else None


def file_safe(name: str) -> str:
    """A model's name as part of a file name: `timm:resnet10t` → `timm-resnet10t`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


class Messages(logging.Handler):
    """Context: keeps what is logged under "vizsla" while it is entered, whatever is shown."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the record."""
        self.records.append(record)

    @property
    def warnings(self) -> list[str]:
        """Messages of level WARNING and above, in order."""
        return [r.getMessage() for r in self.records if r.levelno >= logging.WARNING]

    def __enter__(self) -> "Messages":
        logger = logging.getLogger("vizsla")
        self.before = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("vizsla")
        logger.setLevel(self.before)
        logger.removeHandler(self)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full loses a line here; the next artefact says what is wrong."""


class log_to:
    """Context: what is logged under "vizsla" also goes to `path`, with times."""

    def __init__(self, path: str | Path, *, earlier: Sequence[logging.LogRecord] = ()) -> None:
        self.path, self.earlier = Path(path), earlier

    def __enter__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = _LogFile(self.path, encoding="utf-8")
        except OSError as error:
            raise storage.storage_error("write", self.path, error) from error
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for record in self.earlier:
            self.handler.handle(record)
        logger = logging.getLogger("vizsla")
        logger.addHandler(self.handler)
        self.level = logger.level
        logger.setLevel(logging.DEBUG)  # the file holds all, whatever the program shows

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("vizsla")
        logger.setLevel(self.level)
        logger.removeHandler(self.handler)
        self.handler.close()


def canonical_name(name: str) -> str:
    """One spelling of a model's name: `efficientnet_b0` and `EfficientNet-B0` are one model, and so
    are `clip-vit-b32` and `CLIP-ViT-B-32`."""
    return re.sub(r"(?<=[a-z])-(?=\d)", "", name.strip().lower().replace("_", "-"))
