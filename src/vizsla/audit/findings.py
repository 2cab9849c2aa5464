"""The findings of a check → text, JSON, and the list of files to exclude.

People judge the findings: nothing here changes or deletes an image.
"""

import functools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.audit.copy_groups import CopyGroup, copy_groups, groups_of, to_exclude
from vizsla.audit.duplicates import PAIR_KINDS, UNSURE, Pair, between_items, conflicts, leaks
from vizsla.audit.embedding_checks import Suspect
from vizsla.audit.file_scan import ODD, QUALITY, REMARKS, WHOLE, ImageFacts
from vizsla.data.listing import few
from vizsla.data.occasions import MOMENT, same_moment
from vizsla.notebook import Shown, Summary, counted
from vizsla.score.text_table import Table

SHOWN_FINDINGS = 20  # of each kind, on the terminal
SHOWN_CLASSES = 25  # on the terminal

CLASS_FINDINGS = {
    "empty": "class folders without images",
    "one image": "classes with only one image to train on",
    "similar names": "class names that differ only in case, spaces or hyphens",
    "not in the gallery": "query classes without a gallery image",
}


@dataclass(frozen=True, eq=False, repr=False)
class CheckReport(Shown):
    """All findings. facts: one entry for each image. pairs: of positions in `facts`.

    suspects: the doubtful labels; None without a model. keep: which image of a group of copies
    should stay, a key of `copy_groups.KEEP`. item_column: the column that names the item of each
    image, such as product.
    """

    folder: Path
    facts: list[ImageFacts]
    pairs: list[Pair]
    class_findings: dict[str, list[str]]
    suspects: list[Suspect] | None
    seconds: float
    keep: str = "largest"
    item_column: str | None = None

    def summary(self) -> Summary:
        """How many images, and how many findings of each kind."""
        found = [f"{title.lower()} {len(table.rows)}" for title, table in self.tables().items()]
        odd = {name for names in self.class_findings.values() for name in names}
        found += [f"odd classes {len(odd)}"] * bool(odd)
        facts = [counted(len(self.facts), "image"), *(found or ["nothing found"])]
        table = self.class_table()
        return Summary(f"Check of {self.folder}", facts, table.columns, table.rows,
                       notes=[line for lines in self.remarks() for line in lines])  # fmt: skip

    @property
    def copies(self) -> list[Pair]:
        """Pairs that show one photo, without those that only a model finds similar."""
        return [pair for pair in self.pairs if pair.how != "model"]

    @property
    def broken(self) -> list[ImageFacts]:
        """Images that cannot be read."""
        return [facts for facts in self.facts if facts.broken]

    def odd(self) -> dict[str, list[ImageFacts]]:
        """Kind (see ODD) → images, without empty kinds."""
        by_kind = {kind: [f for f in self.facts if kind in f.odd] for kind in ODD}
        return {kind: found for kind, found in by_kind.items() if found}

    def moments(self) -> list[tuple[int, int, float]]:
        """(a, b, seconds): shots of one moment in two different parts, copies left out."""
        facts, known = self.facts, {(pair.a, pair.b) for pair in self.copies}
        found = same_moment(
            [f.exif.taken for f in facts], [f.exif.camera for f in facts], [f.role for f in facts]
        )
        return [(a, b, seconds) for a, b, seconds in found if (a, b) not in known]

    def leaks(self) -> list[Pair]:
        """Copies in two different parts, such as training and query."""
        return leaks(self.facts, self.copies)

    def conflicts(self) -> list[Pair]:
        """Copies with different labels."""
        return conflicts(self.facts, self.copies)

    def between_items(self) -> list[Pair]:
        """Copies that belong to different items, such as two products."""
        return between_items(self.facts, self.copies)

    @property
    def items(self) -> str:
        """What the items are called: `products`, of the column `product`."""
        column = self.item_column or "item"
        return (
            f"{column}s" if column.isalpha() and column[-1] not in "sy" else f"values of {column}"
        )

    @functools.cached_property
    def photos(self) -> list[list[int]]:
        """Positions of images that show one photo, of whatever item; the largest groups first."""
        return groups_of(len(self.facts), [p for p in self.copies if p.how not in UNSURE])

    @functools.cached_property
    def groups(self) -> list[CopyGroup]:
        """The groups of copies of one item, each with the image to keep; the largest first."""
        return copy_groups(self.facts, self.copies, self.keep)

    def excluded(self) -> dict[str, str]:
        """Name as `run --exclude` reads it → the reason to leave it out."""
        return {self.facts[i].name: reason for i, reason in self._to_exclude.items()}

    @functools.cached_property
    def _to_exclude(self) -> dict[int, str]:
        return to_exclude(self.facts, self.pairs, self.keep)

    def exclude_text(self) -> str:
        """The content of the file that `--write-exclude` writes and `run --exclude` reads."""
        what = "Images" if self.facts[0].role == WHOLE else "Training images"
        lines = [f"# {what} that `vizsla check` would exclude, each below its reason."]
        for name, reason in self.excluded().items():
            plain = name.isprintable() and name == name.strip()
            shown = reason if reason.isprintable() else ascii(reason)
            lines += [f"# {shown}", name if plain else json.dumps(name)]
        return "\n".join(lines) + "\n"

    def kept(self, group: CopyGroup) -> ImageFacts | None:
        """The image of a group that stays; None where all go, since their labels differ."""
        return None if group.keep in self._to_exclude else self.facts[group.keep]

    def class_table(self) -> Table:
        """Number of images by class and role, unlabelled ones included; the last row: all."""
        roles = list(dict.fromkeys(facts.role for facts in self.facts))
        labels = sorted({facts.label for facts in self.facts if facts.label is not None})
        rows = {label: [0] * len(roles) for label in [*labels, None]}
        for facts in self.facts:
            rows[facts.label][roles.index(facts.role)] += 1
        table = [[label or "no label", *counts] for label, counts in rows.items() if any(counts)]
        total = ["all", *(sum(column) for column in zip(*rows.values(), strict=True))]
        return Table(["class", *roles], [*table, total])

    def suspect_table(self) -> Table:
        """The doubtful labels, the most doubtful first."""
        rows = [
            [self.facts[s.i].name, s.label, s.other, s.fit, s.other_fit]
            for s in self.suspects or []
        ]
        return Table(["image", "label", "looks like", "fits label", "fits other"], rows)

    def remarks(self, excluded_in: str | None = None) -> tuple[list[str], list[str]]:
        """(what should be fixed, what is good to know), as lines.

        excluded_in: the file with the images to exclude, if it is written already.
        """
        return _alarms(self), _notes(self, excluded_in)

    def copy_table(self) -> Table:
        """The pairs of copies of one item: those in two parts first, then those with different
        labels."""
        facts, conflicting = self.facts, set(self.conflicts())
        elsewhere = set(self.between_items())

        def row(pair: Pair) -> list[Any]:
            a, b = facts[pair.a], facts[pair.b]
            parts = [f"in two parts: {a.role}, {b.role}"] if a.role != b.role else []
            labels = [f"labels {a.label} and {b.label}"] if pair in conflicting else []
            return [a.name, b.name, pair.how, "; ".join(parts + labels)]

        rows = [row(pair) for pair in self.copies if pair not in elsewhere]
        kinds = ("in two parts", "labels")
        rows.sort(key=lambda row: [not row[3].startswith(kind) for kind in kinds])
        return Table(["image", "copy", "how", "what is wrong"], rows)

    def item_table(self) -> Table:
        """The pairs of copies between different items."""
        facts, column = self.facts, str(self.item_column)
        rows = [
            [facts[p.a].item, facts[p.b].item, facts[p.a].name, facts[p.b].name, p.how]
            for p in self.between_items()
        ]
        return Table([column, f"other {column}", "image", "copy", "how"], rows)

    def group_table(self) -> Table:
        """The groups of copies and which image of each to keep, the largest first."""
        rows: list[list[Any]] = []
        for group in self.groups:
            kept, names = self.kept(group), [self.facts[i].name for i in group.images]
            others = [name for name in names if kept is None or name != kept.name]
            size = f"{kept.size[0]} × {kept.size[1]} {kept.form.split(' ')[0]}" if kept else ""
            rows.append(
                [kept.name if kept else "none: labels differ", size, len(names), few(others)]
            )
        return Table(["keep", "size", "images", "others"], rows)

    def tables(self) -> dict[str, Table]:
        """Title → the findings of one kind, the most serious first; without empty kinds."""
        facts = self.facts
        found = {
            "Broken images": Table(["image", "reason"], [[f.name, f.broken] for f in self.broken]),
            f"Copies between different {self.items}": self.item_table(),
            "Groups of copies": self.group_table(),
            "Copies": self.copy_table(),
            "Odd images": Table(["image", "what is odd"], [
                [f.name, ", ".join(kinds)]
                for f in facts
                if (kinds := [kind for kind in f.odd if kind not in {*REMARKS, *QUALITY}])
            ]),
            "Blurred images": Table(["image", "edge width"], [
                [f.name, f.blur]
                for f in sorted(self.odd().get("blurred", []), key=lambda f: -f.blur)
            ]),
            "Dark images": Table(["image", "brightness"], [
                [f.name, f.brightness]
                for f in sorted(self.odd().get("dark", []), key=lambda f: f.brightness)
            ]),
            "Shots of one moment in two parts": Table(["image", "other image", "time apart"], [
                [facts[a].name, facts[b].name, f"{seconds:g} s"] for a, b, seconds in self.moments()
            ]),
            "Doubtful labels": self.suspect_table(),
            "Almost equal vectors": Table(["image", "other image", "cosine"], [
                [facts[p.a].name, facts[p.b].name, p.similarity]
                for p in self.pairs if p.how == "model"
            ]),
        }  # fmt: skip
        return {title: table for title, table in found.items() if table.rows}

    def text(self, width: int | None = None) -> str:
        """Image counts and the first findings of each kind, for a terminal; see also `remarks`.

        width: see `Table.lines`.
        """
        lines = self.class_table().lines(width)
        if len(lines) > SHOWN_CLASSES:
            half = SHOWN_CLASSES // 2
            hidden = f"… {len(lines) - 2 * half - 1} more classes"
            lines = [*lines[: half + 1], hidden, *lines[-half:]]
        for title, found in self.tables().items():
            total = len(found.rows)
            most_first = ", the most doubtful first" if title == "Doubtful labels" else ""
            of = f"the first {SHOWN_FINDINGS} of {total}" if total > SHOWN_FINDINGS else total
            rows = [[_visible(cell) for cell in row] for row in found.rows[:SHOWN_FINDINGS]]
            shown = Table(found.columns, rows).lines(width, keep=found.columns)
            lines += ["", f"{title} ({of}{most_first}):", *shown]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All findings, for JSON."""
        names = [facts.name for facts in self.facts]
        table = self.class_table()
        return {
            "data": str(self.folder),
            "images": dict(zip(table.columns[1:], table.rows[-1][1:], strict=True)),
            "classes": {row[0]: dict(zip(table.columns[1:], row[1:], strict=True))
                        for row in table.rows[:-1]},
            "class_findings": self.class_findings,
            "broken": [{"image": f.name, "reason": f.broken} for f in self.broken],
            "odd": {kind: [f.name for f in found] for kind, found in self.odd().items()},
            "item_column": self.item_column,
            "pairs": [self._pair(pair) for pair in self.pairs],
            "groups": [
                {"keep": kept.name if (kept := self.kept(group)) else None,
                 "images": [names[i] for i in group.images]}
                for group in self.groups
            ],
            "moments": [
                {"images": [names[a], names[b]], "seconds": seconds}
                for a, b, seconds in self.moments()
            ],
            "files": [_file_facts(f) for f in self.facts if not f.broken],
            "suspects": None if self.suspects is None else [
                {"image": names[s.i], "label": s.label, "looks_like": s.other,
                 "fits_label": round(s.fit, 4), "fits_other": round(s.other_fit, 4),
                 "doubt": round(s.doubt, 4)}
                for s in self.suspects
            ],
            "exclude": self.excluded(),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def _pair(self, pair: Pair) -> dict[str, Any]:
        a, b = self.facts[pair.a], self.facts[pair.b]
        return {
            "images": [a.name, b.name], "how": pair.how, "turn": pair.turn,
            "similarity": round(pair.similarity, 4), "labels": [a.label, b.label],
            "leak": a.role != b.role, "conflict": bool(conflicts(self.facts, [pair])),
            "items": [a.item, b.item], "between_items": bool(between_items(self.facts, [pair])),
        }  # fmt: skip


def _file_facts(facts: ImageFacts) -> dict[str, Any]:
    exif = facts.exif
    found: dict[str, Any] = {
        "image": facts.name, "size": list(facts.size), "form": facts.form, "blur": facts.blur,
        "brightness": facts.brightness, "taken": exif.taken and exif.taken.isoformat(),
        "camera": exif.camera, "latitude": exif.place and exif.place[0],
        "longitude": exif.place and exif.place[1],
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _alarms(report: CheckReport) -> list[str]:
    facts = report.facts
    between: dict[tuple[str, str], list[Pair]] = {}
    for pair in report.leaks():
        between.setdefault((facts[pair.a].role, facts[pair.b].role), []).append(pair)
    lines = []
    if report.broken:
        shown = [f"{f.name} ({f.broken})" for f in report.broken]
        lines.append(f"{_counted(len(shown), 'image')} cannot be read: {few(shown)}")
    for (first, second), pairs in between.items():
        copied = {pair.a for pair in pairs if pair.how != "part"}
        shared = {pair.a for pair in pairs} - copied
        if copied:
            are = "is" if len(copied) == 1 else "are"
            many = _counted(len(copied), f"{first} image")
            lines.append(f"{many} {are} also in the {second} part")
        if shared:
            have = "has" if len(shared) == 1 else "have"
            many = _counted(len(shared), f"{first} image")
            lines.append(f"{many} {have} a part in common with images of the {second} part")
    if moments := report.moments():
        cameras = {str(facts[a].exif.camera) for a, _, _ in moments}
        lines.append(
            f"{_counted(len(moments), 'pair')} of shots of one moment in two parts, by one camera "
            f"within {MOMENT.seconds} s: {few(sorted(cameras))}"
        )
    if against := report.conflicts():
        lines.append(f"{_counted(len(against), 'pair')} of copies with different labels")
    if across := report.between_items():
        items = [sorted(str(facts[i].item) for i in (pair.a, pair.b)) for pair in across]
        names = few([*dict.fromkeys(map(" and ".join, items))])
        lines.append(
            f"{_counted(len(across), 'pair')} of copies between different {report.items}: {names}"
        )
    kinds = [kind for kind in report.odd() if kind not in REMARKS]
    lines += [_odd_line(report, kind) for kind in kinds]
    lines += [_class_line(kind, names) for kind, names in report.class_findings.items()]
    return lines


def _notes(report: CheckReport, excluded_in: str | None) -> list[str]:
    lines = []
    nothing = not (_alarms(report) or report.copies or report.suspects)
    if nothing:
        lines.append(
            f"nothing to fix: {_counted(len(report.facts), 'image')}, all readable, no copies, no "
            f"odd images or classes{'' if report.suspects is None else ', no doubtful labels'}"
        )
    if report.suspects:
        lines.append(
            f"{_counted(len(report.suspects), 'label')} in doubt: look at them, the first ones "
            "above all; many of the later ones are right"
        )
    inside = [p for p in report.copies if report.facts[p.a].role == report.facts[p.b].role]
    by_role: dict[str, list[Pair]] = {}
    for pair in inside:
        by_role.setdefault(report.facts[pair.a].role, []).append(pair)
    for role, pairs in by_role.items():
        kinds = ", ".join(
            f"{count} {how}" for how in PAIR_KINDS if (count := sum(p.how == how for p in pairs))
        )
        where = "" if role == WHOLE else f" inside the {role} part"
        lines.append(f"{_counted(len(pairs), 'pair')} of copies{where} ({kinds})")
    if almost := [pair for pair in report.pairs if pair.how == "model"]:
        lines.append(f"{_counted(len(almost), 'pair')} that the model finds almost the same")
    lines += [_odd_line(report, kind) for kind in report.odd() if kind in REMARKS]
    if report.suspects is None:
        lines.append("doubtful labels are only found with a model: give --model")
    if excluded := report.excluded():
        whole = report.facts[0].role == WHOLE
        what = _counted(len(excluded), "image" if whole else "training image")
        file = shlex.quote(excluded_in) if excluded_in else "FILE"
        do = f"embed {shlex.quote(str(report.folder))}" if whole else "run DATA"
        command = f"`vizsla {do} --exclude {file}`"
        listed = "" if excluded_in else "--write-exclude FILE lists them, "
        them = "it" if len(excluded) == 1 else "them"
        lines.append(f"{what} should be left out: {listed}{command} leaves {them} out")
    return lines


def _visible(cell: Any) -> Any:
    """A name without line breaks and the like."""
    return few([cell]) if isinstance(cell, str) else cell


def _odd_line(report: CheckReport, kind: str) -> str:
    found = report.odd()[kind]
    names = few([f.name for f in found])
    return f"{kind} ({ODD[kind]}): {_counted(len(found), 'image')}, {names}"


def _class_line(kind: str, names: Sequence[str]) -> str:
    return f"{CLASS_FINDINGS[kind]} ({len(names)}): {few(names, 8)}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
