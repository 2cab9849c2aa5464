"""Names as people and programs write them → the names of images.

A name as it is written always comes first. Only one that no image has is corrected: white space
around it, `\\` for `/`, a leading `./`, percent codes for white space, Unicode's form (a Mac writes
é as e and an accent), and at last a path that leads to the folder of its role. A correction is
used only if exactly one image fits, and is reported.
"""

import logging
import re
import unicodedata
from collections.abc import Collection, Sequence

log = logging.getLogger("vizsla.names")

# Spaces separate the names of a list, so white space within a name is percent-encoded (%20), and so
# is a % that would look like such a code (%25).
_NOT_IN_LISTS = re.compile(r"\s|%(?=[0-9A-Fa-f]{2})")
_CODES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def without_spaces(name: str) -> str:
    """The name with its white space percent-encoded."""
    return _NOT_IN_LISTS.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name
    )


def with_spaces(name: str) -> str:
    """The name that `without_spaces` encoded; codes of other characters are left as they are."""

    def decoded(found: re.Match[str]) -> str:
        try:
            text = bytes.fromhex(found[0].replace("%", "")).decode()
        except UnicodeDecodeError:  # the name of another program, not a code
            return found[0]
        return text if not text.replace("%", "").strip() else found[0]

    return _CODES.sub(decoded, name) if "%" in name else name


def normalized_name(name: str) -> str:
    """The name without differences of white space, slashes, codes and Unicode's form."""
    name = with_spaces(name).strip().replace("\\", "/").removeprefix("./")
    return nfc(name)


def nfc(text: str) -> str:
    """The text in Unicode's composed form (NFC): labels and other values have it everywhere."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def path_below_role(name: str, role: str | None) -> str | None:
    """`data/test/query/a.jpg` → `a.jpg` for the role query; None if it leads through no such
    folder."""
    return f"/{name}".partition(f"/{role}/")[2] or None if role else None


def match_names(
    names: Sequence[str],
    known: Collection[str],
    *,
    roles: Sequence[str | None] | None = None,
    origin: str | None = None,
) -> list[str | None]:
    """For each name the one of `known` that it means; None if none or several fit.

    roles: for each name the folder that it may lead through (query, gallery, training, test).
    origin: what holds the names, for the report of corrections; None: no report.
    """
    known = known if isinstance(known, set | frozenset | dict) else dict.fromkeys(known)
    found: list[str | None] = [name if name in known else None for name in names]
    rest = [i for i, name in enumerate(found) if name is None]
    if not rest:
        return found
    taken = set(found)
    by_plain: dict[str, list[str]] = {}
    for name in known:
        if name not in taken:
            by_plain.setdefault(normalized_name(name), []).append(name)
    corrected, ambiguous = [], []
    for i in rest:
        written = normalized_name(names[i])
        cut = path_below_role(written, roles[i]) if roles else None
        fits = by_plain.get(written) or (by_plain.get(cut, []) if cut else [])
        if len(fits) == 1:
            found[i] = fits[0]
            if normalized_name(fits[0]) == written:  # a path to it is a usual way to write it
                corrected.append((names[i], fits[0]))
        elif fits:
            ambiguous.append(names[i])
    if origin and corrected:
        log.warning(
            "%s: %d names differ from those of their images in white space, slashes or Unicode's "
            "form (%s for %s)", origin, len(corrected), *map(_visibly, corrected[0])
        )  # fmt: skip
    if origin and ambiguous:
        log.warning(
            "%s: %d names fit several images that differ only in white space, slashes or Unicode's "
            "form, so none was taken: %s", origin, len(ambiguous), _visibly(ambiguous[0])
        )  # fmt: skip
    return found


def _visibly(name: str) -> str:
    return name if name.isascii() and "%" not in name else ascii(name)
