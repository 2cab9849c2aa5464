"""Names of files in a table → paths on this machine: which folder they are relative to, and which
exist."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vizsla.data.listing import few
from vizsla.errors import DataError

log = logging.getLogger("vizsla.imageset")


def base_of(path: str | Path, root: str | Path | None, role: str | None, names: list[str]) -> str:
    """The folder that names are relative to: the first in which some of the files exist."""
    if root is not None:
        if not Path(root).is_dir():
            raise DataError(f"{root} is not a folder: give the one that {path} is relative to")
        return os.path.abspath(root)  # noqa: PTH100 (links stay as they are)
    beside = Path(os.path.abspath(path)).parent  # noqa: PTH100
    below = {None: [], "training": ["training"]}.get(role, [f"test/{role}", f"{role}"])
    places = [str(place) for place in (beside, *(beside / name for name in below))]
    exists = (place for place in places if any(resolved(place, n)[1] for n in names[:100]))
    return next(exists, places[0])


def resolved(base: str, name: str) -> tuple[str, bool]:
    """The file that a name in a table refers to, and whether it exists."""
    usual = name.strip().replace("\\", "/")
    forms = (unicodedata.normalize(form, usual) for form in ("NFC", "NFD"))
    for spelling in dict.fromkeys((name, name.strip(), usual, *forms)):
        file = os.path.normpath(os.path.join(base, spelling))  # noqa: PTH118
        if os.path.isfile(file):  # noqa: PTH113 (a Path costs more than the check itself)
            return file, True
    return os.path.normpath(os.path.join(base, usual)), False  # noqa: PTH118


def report_corrections(
    base: str, names: Sequence[str], files: Sequence[str], exist: Sequence[bool], path: str | Path
) -> None:
    """A warning of the names whose files are found only in another spelling."""
    changed = [
        ascii(name) for name, file, there in zip(names, files, exist, strict=True)
        if there and os.path.normpath(os.path.join(base, name)) != file  # noqa: PTH118
    ]  # fmt: skip
    if changed:
        log.warning(
            "%s: %d names differ from those of their images in white space, slashes or Unicode's "
            "form: %s", path, len(changed), few(changed)
        )  # fmt: skip


def root_of(files: Sequence[str], base: str, *, fixed: bool) -> str:
    """`base`, or the folder that holds all files if some are outside it."""
    outside = [file for file in files if not file.startswith(base.rstrip(os.sep) + os.sep)]
    if not outside:
        return base
    if fixed:
        raise DataError(
            f"{len(outside)} files are outside {base} ({few(outside)}): "
            "give a root that holds them all"
        )
    try:
        return os.path.commonpath([str(Path(file).parent) for file in files])
    except ValueError as error:  # several drives
        raise DataError(f"the files have no folder in common ({few(outside)})") from error


def warn_of_missing(missing: list[str], n_files: int, path: str | Path) -> None:
    """A warning of the files that do not exist; DataError if none does."""
    if len(missing) == n_files:
        raise DataError(
            f"none of the {n_files} files that {path} names exists ({few(missing)}): "
            "give the folder that its names are relative to as --root, or a --role"
        )
    if missing:
        log.warning("%s names %d files that do not exist: %s", path, len(missing), few(missing))
