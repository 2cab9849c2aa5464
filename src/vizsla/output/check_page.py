"""A check's report → one self-contained page with the images in question, without JavaScript."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vizsla.audit.duplicates import PAIR_KINDS, TEST, Pair
from vizsla.audit.file_scan import ODD, QUALITY, REMARKS, WHOLE
from vizsla.audit.findings import CLASS_FINDINGS, CheckReport
from vizsla.data.images import MAX_PIXELS
from vizsla.output.pages import Section, render_page, thumbnail

MOST_CARDS = 60  # in a section
MOST_TILES = 12  # on a card
MOST_ROWS = 300  # in a table
SCORES = {
    "blurred": (
        "edges",
        "The width of the sharpest edges, in px of an image whose shorter side has 256: about 0.7 "
        "in a sharp photo. The most blurred images come first.",
    ),
    "dark": (
        "brightness",
        "How bright the brightest tenth of the image is, from 0 to 1. The darkest come first.",
    ),
}


def page(report: CheckReport, *, max_pixels: int = MAX_PIXELS) -> str:
    """The HTML of the whole page."""
    album = _Album(report, max_pixels)
    alarms, notes = report.remarks()
    groups = _groups_by_finding(report)
    near = [pair for pair in report.pairs if pair.how == "model"]
    parts = [pair for pair in report.pairs if pair.how == "part"]
    whole = report.facts[0].role == WHOLE
    excluded = list(report.excluded().items())
    sections = [
        Section("warnings", "What should be fixed", alarms, "lines"),
        Section("notes", "Good to know", notes, "lines"),
        Section("leaks", "Training images that are also in the test part",
                album.group_cards(groups["leaks"]), "cards"),
        Section("shared", "Queries that are also in the gallery",
                album.group_cards(groups["shared"]), "cards"),
        Section("conflicts", "Copies with different labels",
                album.group_cards(groups["conflicts"]), "cards"),
        Section("items", f"Copies between different {report.items}",
                album.group_cards(groups["items"]), "cards"),
        Section("moments", "Shots of one moment in two parts", _moments(report, album), "cards"),
        Section("doubts", "Doubtful labels",
                _doubts(report, groups["conflicts"], album)),
        Section("copies", "Copies" if whole else "Other copies",
                album.group_cards(groups["copies"]), "cards"),
        Section("parts", "Images with a part in common", album.pair_cards(parts), "cards"),
        Section("almost", "Pairs with almost equal vectors", album.pair_cards(near), "cards"),
        Section("broken", "Broken images", _rows([(f.name, f.broken) for f in report.broken])),
        Section("odd", "Odd images", _odd_images(report, album)),
        Section("blurred", "Blurred images", _scored("blurred", report, album), "scored"),
        Section("dark", "Dark images", _scored("dark", report, album), "scored"),
        Section("classes", "Classes", _classes(report)),
        Section("excluded", "Images to leave out", _rows(excluded)),
    ]  # fmt: skip
    counts = report.class_table()
    totals = zip(counts.columns[1:], counts.rows[-1][1:], strict=True)
    return render_page(
        "check.html",
        f"Check of {Path(report.folder).resolve().name}",
        sections,
        subtitle=[
            *(f"{n:,} images" if role == WHOLE else f"{n:,} {role} images" for role, n in totals),
            f"{report.seconds:.0f} s",
        ],
        headline=_headline(report),
    )


def _groups_by_finding(report: CheckReport) -> dict[str, list[list[int]]]:
    """Finding → groups of copies; each group once, under its most serious finding."""
    conflicting = {i for pair in report.conflicts() for i in (pair.a, pair.b)}
    between = {i for pair in report.between_items() for i in (pair.a, pair.b)}
    found: dict[str, list[list[int]]] = {
        kind: [] for kind in ("leaks", "shared", "conflicts", "items", "copies")
    }
    for group in report.photos:
        roles = {report.facts[i].role for i in group}
        if len(roles) > 1:
            kind = "leaks" if "training" in roles else "shared"
        elif conflicting & set(group):
            kind = "conflicts"
        else:
            kind = "items" if between & set(group) else "copies"
        found[kind].append(group)
    return found


class _Album:
    """The images of one report as tiles and cards."""

    def __init__(self, report: CheckReport, max_pixels: int) -> None:
        self.facts = report.facts
        self.max_pixels = max_pixels
        self.pairs_of: dict[int, list[Pair]] = {}
        for pair in report.pairs:
            self.pairs_of.setdefault(pair.a, []).append(pair)
        self.conflicts = {(pair.a, pair.b) for pair in report.conflicts()}
        self.item_column = report.item_column
        self.kept = {group.keep for group in report.groups if report.kept(group)}
        self.suspects = {suspect.i: suspect for suspect in report.suspects or []}

    def image(self, i: int) -> dict[str, Any]:
        facts = self.facts[i]
        return {
            "id": facts.name, "name": PurePosixPath(facts.id).name, "role": facts.role,
            "label": facts.label, "item": facts.item and f"{self.item_column} {facts.item}",
            "size": facts.size, "form": facts.form,
            "picture": thumbnail(facts.path, max_pixels=self.max_pixels),
            "suspect": self.suspects.get(i), "kept": i in self.kept,
        }  # fmt: skip

    def group_cards(self, groups: Sequence[Sequence[int]]) -> dict[str, Any] | None:
        def pairs_in(group: Sequence[int]) -> list[Pair]:
            inside = set(group)
            pairs = [p for i in group for p in self.pairs_of.get(i, ()) if p.b in inside]
            return [pair for pair in pairs if pair.how != "model"]

        cards = [self._card(group, pairs_in(group)) for group in groups[:MOST_CARDS]]
        return {"cards": cards, "total": len(groups)} if cards else None

    def pair_cards(self, pairs: Sequence[Pair]) -> dict[str, Any] | None:
        cards = [self._card([pair.a, pair.b], [pair]) for pair in pairs[:MOST_CARDS]]
        return {"cards": cards, "total": len(pairs)} if cards else None

    def _card(self, group: Sequence[int], pairs: Sequence[Pair]) -> dict[str, Any]:
        kept_first = sorted(
            group, key=lambda i: (i not in self.kept, self.facts[i].role not in TEST, i)
        )
        kinds = [_kind(how, [p for p in pairs if p.how == how]) for how in PAIR_KINDS]
        return {
            "kinds": [kind for kind in kinds if kind],
            "conflict": any((pair.a, pair.b) in self.conflicts for pair in pairs),
            "total": len(group),
            "images": [self.image(i) for i in kept_first[:MOST_TILES]],
        }


def _kind(how: str, pairs: Sequence[Pair]) -> str:
    """Such as `near 0.97`: the lowest similarity of the pairs, rounded down."""
    if not pairs:
        return ""
    lowest = min(pair.similarity for pair in pairs)
    if how == "turned":
        how = ", ".join(sorted({pair.turn for pair in pairs}))
    elif how == "model":
        how = "cosine"
    return f"{how} {int(lowest * 100) / 100:.2f}" if lowest < 1 else how


def _rows(rows: Sequence[Sequence[Any]]) -> dict[str, Any] | None:
    return {"rows": rows[:MOST_ROWS], "total": len(rows)} if rows else None


def _doubts(
    report: CheckReport, conflicts: Sequence[Sequence[int]], album: _Album
) -> dict[str, Any] | None:
    """The doubtful labels, without the copies with different labels, which have cards already."""
    above = {i for group in conflicts for i in group}
    suspects = report.suspects or []
    others = [suspect for suspect in suspects if suspect.i not in above]
    images = [album.image(suspect.i) for suspect in others[:MOST_CARDS]]
    found = {"images": images, "total": len(others), "above": len(suspects) - len(others)}
    return found if suspects else None


def _moments(report: CheckReport, album: _Album) -> dict[str, Any] | None:
    """A card for each pair of shots: how far apart in time, and by which camera."""
    found = report.moments()
    cards = [
        {
            "kinds": [f"{seconds:g} s apart, {report.facts[a].exif.camera}"], "conflict": False,
            "total": 2, "images": [album.image(a), album.image(b)],
        }
        for a, b, seconds in found[:MOST_CARDS]
    ]  # fmt: skip
    return {"cards": cards, "total": len(found)} if cards else None


def _scored(kind: str, report: CheckReport, album: _Album) -> dict[str, Any] | None:
    """The blurred or the dark images, the worst first, each with its score."""
    places = [i for i, facts in enumerate(report.facts) if kind in facts.odd]
    sign = {"blurred": -1, "dark": 1}[kind]
    places.sort(key=lambda i: sign * report.facts[i].score(kind))
    images = [
        (album.image(i), f"{SCORES[kind][0]} {report.facts[i].score(kind):.2f}")
        for i in places[:MOST_CARDS]
    ]
    about = SCORES[kind][1]
    return {"images": images, "total": len(places), "about": about} if images else None


def _odd_images(report: CheckReport, album: _Album) -> dict[str, Any] | None:
    """The odd images, each once with all that is odd, and for each remark the names."""
    left_out = {*REMARKS, *QUALITY}  # those of low quality have sections of their own
    odd = [i for i, facts in enumerate(report.facts) if set(facts.odd) - left_out]
    found = {kind: files for kind, files in report.odd().items() if kind not in QUALITY}
    content = {
        "meanings": [f"{kind}: {ODD[kind]}" for kind in found if kind not in REMARKS],
        "images": [
            (album.image(i), [kind for kind in report.facts[i].odd if kind not in left_out])
            for i in odd[:MOST_CARDS]
        ],
        "total": len(odd),
        "remarks": [
            {"title": kind[0].upper() + kind[1:], "meaning": ODD[kind], "total": len(images),
             "names": [f"{facts.name} ({facts.form})" for facts in images[:MOST_ROWS]]}
            for kind, images in found.items() if kind in REMARKS
        ],
    }  # fmt: skip
    return content if found else None


def _classes(report: CheckReport) -> dict[str, Any]:
    counts = report.class_table()
    largest = max((max(row[1:]) for row in counts.rows[:-1]), default=1)
    return {
        "findings": [
            f"{CLASS_FINDINGS[kind]}: {', '.join(names)}"
            for kind, names in report.class_findings.items()
        ],
        "columns": counts.columns,
        "rows": [[row[0], *(f"{count:,}" for count in row[1:])] for row in counts.rows],
        "bars": [*(max(row[1:]) / largest for row in counts.rows[:-1]), None],
    }


def _headline(report: CheckReport) -> list[tuple[str, str, str, bool]]:
    """(section, number, what it counts, whether it is serious): nothing is counted twice."""
    leaks, conflicts = report.leaks(), report.conflicts()
    parts = [pair for pair in report.copies if pair.how == "part"]
    leaks = [pair for pair in leaks if pair.how != "part"]
    leaked = {p.a for p in leaks if report.facts[p.a].role == "training"}
    shared = {p.a for p in leaks if report.facts[p.a].role != "training"}
    between = report.between_items()
    others = {*report.copies} - {*leaks, *conflicts, *parts, *between}
    numbers = [("broken", len(report.broken), "broken images")]
    if any(facts.label is not None for facts in report.facts):
        numbers = [
            ("conflicts", len(conflicts), "pairs of copies with different labels"),
            ("copies", len(others), "other pairs of copies"), *numbers,
        ]  # fmt: skip
    else:
        numbers = [("copies", len(others), "pairs of copies"), *numbers]
    if report.item_column is not None:
        numbers = [("items", len({*between} - {*leaks, *conflicts}),
                    f"pairs of copies between different {report.items}"), *numbers]  # fmt: skip
    if parts:
        numbers.append(("parts", len(parts), "pairs with a part in common"))
    if report.facts[0].role != WHOLE:
        numbers = [
            ("leaks", len(leaked), "training images also in the test part"),
            ("shared", len(shared), "queries also in the gallery"), *numbers,
        ]  # fmt: skip
    if report.suspects is not None:
        numbers.append(("doubts", len(report.suspects), "doubtful labels"))
    return [
        (
            key,
            f"{number:,}",
            text,
            bool(number) and key in ("leaks", "conflicts", "items", "broken"),
        )
        for key, number, text in numbers
    ]
