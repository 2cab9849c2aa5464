"""Folder of runs → what each takes and scores, and which of them can be removed.

Result files, submissions and sheets are never removed: only folders below runs/.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vizsla.errors import DataError, StorageError, UsageError
from vizsla.score.result_file import read_result
from vizsla.score.run_table import Row, RunTable, row_of_result, run_table
from vizsla.score.text_table import Table
from vizsla.score.validation_scores import validation_table
from vizsla.workspace import RUN_ID, Run, is_run, open_run

log = logging.getLogger("vizsla.run")

BEST = "best"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """One run. row: of its result; None if it was interrupted, or is not finished.

    needs: the ids of the runs that it fuses, or whose model it uses.
    """

    run: Run
    size: int
    row: Row | None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RunFolders:
    """All runs of a home, the best first. ranked: those that have a result."""

    folders: list[RunFolder]
    ranked: RunTable | None

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(folder.size for folder in self.folders)

    def table(self) -> Table:
        """One row a run: size, model and scores."""
        sizes = {folder.run.id: f"{format_size(folder.size):>6}" for folder in self.folders}
        ranked = Table(["run", "model"], [])
        if self.ranked is not None:
            ranked = self.ranked.table()
            if self.ranked.is_validated_only:
                ranked, _ = validation_table(self.ranked.validated(), self.ranked.metric)
                ranked = ranked.select([name for name in ranked.columns if name != "time"])
        without = [name for name in ranked.columns if name != "vs best"]
        ranked = ranked.select(without)
        rows = [[row[0], sizes[row[0]], *row[1:]] for row in ranked.rows]
        empty = [None] * (len(without) - 2)
        rows += [
            [folder.run.id, sizes[folder.run.id], "still running, or interrupted", *empty]
            for folder in self.folders
            if folder.row is None
        ]
        return Table([without[0], "size", *without[1:]], rows, ranked.digits)

    def superfluous(self, keep: str) -> list[RunFolder]:
        """The runs that are not kept. keep: "best", or how many of the best of each data set.

        Runs without scores of the test part are compared by those of validation, where they were
        validated on the same images. The runs that a kept one needs are kept, and so are those
        without a result, of which one may be running, and those without any scores.
        """
        if keep != BEST and (not keep.isdigit() or int(keep) < 1):
            raise UsageError(f"--keep {keep}: write best, or a number such as 3")
        most = 1 if keep == BEST else int(keep)
        kept: set[str] = set()
        groups: dict[tuple[str | None, str], list[tuple[float, str]]] = {}
        for place, row in enumerate(self.ranked.rows if self.ranked else []):
            if self.ranked is not None and row.value(self.ranked.metric) is not None:
                groups.setdefault((row.data, ""), []).append((place, row.run))
            elif row.validation is not None:
                of_set = groups.setdefault((row.data, row.validation.id), [])
                of_set.append((-row.validation.map, row.run))
            else:
                kept.add(row.run)
        for members in groups.values():
            kept |= {run for _, run in sorted(members)[:most]}
        by_id = {folder.run.id: folder for folder in self.folders}
        waiting = list(kept)
        while waiting:
            needs = set(by_id[waiting.pop()].needs) & by_id.keys() - kept
            kept |= needs
            waiting += needs
        return [f for f in self.folders if f.row is not None and f.run.id not in kept]


def run_folders(home: str | Path = ".", metric: str | None = None) -> RunFolders:
    """The runs below `home`/runs, ordered by a metric. DataError if there are none."""
    found = [_folder(path) for path in sorted((Path(home) / "runs").glob("*")) if is_run(path)]
    if not found:
        raise DataError(
            f"{Path(home) / 'runs'} holds no runs: give --home, or make one by `vizsla run DATA`"
        )
    rows = {folder.run.id: folder.row for folder in found if folder.row is not None}
    ranked = run_table(list(rows.values()), metric, test=False) if rows else None
    place = {row.run: i for i, row in enumerate(ranked.rows)} if ranked else {}
    found.sort(key=lambda folder: place.get(folder.run.id, len(place)))
    return RunFolders(found, ranked)


def remove_runs(folders: Sequence[RunFolder]) -> None:
    """Removes the folders of these runs."""
    for folder in folders:
        shutil.rmtree(folder.run.folder)
        log.info("removed %s", folder.run.folder)


def format_size(size: int) -> str:
    """Bytes as people read them: 900 kB, 16 MB, 1.2 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _folder(path: Path) -> RunFolder:
    run = open_run(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    row: Row | None = None
    needs: list[str] = []
    try:
        if run.result_file is not None:
            row = row_of_result(read_result(run.result_file), with_queries=False)
        needs = [str(member["run"]) for member in run.config.get("members", ())]
        needs += RUN_ID.findall(run.config["options"]["model"])
    except (DataError, StorageError) as error:
        log.warning("%s: %s", path, error)
    return RunFolder(run, size, row, tuple(needs))
