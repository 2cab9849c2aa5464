"""A data folder → one report of all that may be wrong with it: as text, as JSON, as a list of files
to leave out.

What is found is for people to judge: nothing here changes or deletes an image.
"""

import json
import os
import time
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla.audit import neighbours
from vizsla.audit.duplicates import (
    HOWS,
    TEST,
    Pair,
    conflicts,
    find_pairs,
    groups_of,
    leaks,
    to_exclude,
)
from vizsla.audit.look import ODD, REMARKS, Facts, Looks, look
from vizsla.audit.neighbours import Suspect
from vizsla.data.images import MAX_PIXELS, few
from vizsla.data.imageset import DataFolders, ImageSet, labels_for, read_labels
from vizsla.errors import DataError
from vizsla.model.embeddings import Embeddings
from vizsla.score.tables import Table

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder
    from vizsla.model.inference import Compute

Embed = Callable[[str, ImageSet], Embeddings]
Progress = Callable[[str, int, int], None]  # (stage, done, in all)
MOST_SUSPECTS = 100  # listed; behind the first dozens of them hardly one is a real mistake
SHOWN_SUSPECTS = 20  # on the terminal
SHOWN_CLASSES = 25  # on the terminal


def labelled_sets(data: DataFolders, labels: str | Path | None = None) -> dict[str, ImageSet]:
    """Role → images; query and gallery with the labels of the file, or of the folder's own.

    Unlike all other commands this one looks at the truth of the test part: it is no model.
    """
    sets = {"training": data.training} if data.training else {}
    sets |= {"query": data.query, "gallery": data.gallery}
    file = labels or data.labels_file
    if file is None:
        return sets
    table = read_labels(file)
    if "label" not in table.column_names and labels is None:
        return sets
    for role in TEST:
        found = labels_for(sets[role].ids, table, role)
        if labels is not None and not any(found):
            raise DataError(
                f"{labels} has a label for none of the {len(found)} {role} images: "
                "give the labels file of this data folder"
            )
        sets[role] = sets[role].with_labels(found)
    return sets


def check(
    folder: str | Path,
    sets: Mapping[str, ImageSet],
    *,
    embed: Embed | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> "Report":
    """Looks at every image of all sets (role → images, see `labelled_sets`).

    embed: (role, its readable images) → their embeddings, all by one model; it adds the pairs that
    only a model finds alike, and labels in doubt. workers: None takes all cores.
    """
    started = time.monotonic()
    workers = workers or min(16, _cores())
    report = progress or (lambda stage, done, total: None)
    looks = look(
        sets, max_pixels=max_pixels, workers=workers,
        progress=lambda done, total: report("reading", done, total),
    )  # fmt: skip
    pairs = find_pairs(
        looks, max_pixels=max_pixels, workers=workers,
        progress=lambda done, total: report("comparing", done, total),
    )  # fmt: skip
    suspects = None
    if embed is not None:
        broken = {facts.name for facts in looks.facts if facts.broken}
        vectors = neighbours.stacked(sets, _embeddings(sets, broken, embed))
        pairs += _near_pairs(looks, pairs, vectors)
        suspects = _suspects(looks, pairs, vectors)
    seconds = time.monotonic() - started
    return Report(Path(folder), looks.facts, pairs, _class_findings(sets), suspects, seconds)


def embedding_in(
    folder: Path,
    embedder: "Embedder",
    compute: "Compute",
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Embed:
    """What `check` takes as `embed`: each role is embedded into a folder of its own below this."""
    from vizsla.model import inference

    def embed(role: str, images: ImageSet) -> Embeddings:
        def report(done: int, total: int) -> None:
            if progress:
                progress(f"embedding {role}", done, total)

        return inference.embed(
            images, embedder, folder / role, compute=compute, max_pixels=max_pixels, progress=report
        )

    return embed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _embeddings(
    sets: Mapping[str, ImageSet], broken: Collection[str], embed: Embed
) -> dict[str, Embeddings]:
    found = {}
    for role, images in sets.items():
        whole = images.without({name for name in images.ids if f"{role}/{name}" in broken})
        if len(whole):
            found[role] = embed(role, whole)
    return found


def _units(looks: Looks, pairs: Sequence[Pair], vectors: np.ndarray) -> list[int]:
    """Positions with a vector, each photo once for each label."""
    copies = [pair for pair in pairs if pair.how != "model"]
    group = {i: group[0] for group in groups_of(len(looks), copies) for i in group}
    have_vectors = np.isfinite(vectors).all(axis=1)
    firsts: dict[tuple[int, str | None], int] = {}
    for i, facts in enumerate(looks.facts):
        if have_vectors[i]:
            firsts.setdefault((group.get(i, i), facts.label), i)
    return list(firsts.values())


def _near_pairs(looks: Looks, pairs: Sequence[Pair], vectors: np.ndarray) -> list[Pair]:
    known = {(pair.a, pair.b) for pair in pairs}
    units = _units(looks, pairs, vectors)
    found = [
        Pair(units[a], units[b], "model", cosine)
        for a, b, cosine in neighbours.near_pairs(vectors[units])
    ]
    return [pair for pair in found if (pair.a, pair.b) not in known]


def _suspects(looks: Looks, pairs: Sequence[Pair], vectors: np.ndarray) -> list[Suspect]:
    units = [i for i in _units(looks, pairs, vectors) if looks.facts[i].label is not None]
    labels = [str(looks.facts[i].label) for i in units]
    found = neighbours.suspects(vectors[units], labels)
    return [suspect.at(units[suspect.i]) for suspect in found[:MOST_SUSPECTS]]


# ── classes ──────────────────────────────────────────────────────────────────────────────────────


def _class_findings(sets: Mapping[str, ImageSet]) -> dict[str, list[str]]:
    """Kind of finding → class names; kinds without any are left out."""
    counts = {role: _counts(images) for role, images in sets.items()}
    training, query, gallery = (counts.get(role, {}) for role in ("training", *TEST))
    root = sets["training"].root if "training" in sets else None
    folders = (path.name for path in root.iterdir() if path.is_dir()) if root else ()
    found = {
        "empty": [name for name in folders if name[0] != "." and name not in training],
        "one image": [name for name, count in training.items() if count == 1],
        "alike in name": ["/".join(names) for names in _twins({*training, *query, *gallery})],
        "not in the gallery": [name for name in query if name not in gallery] if gallery else [],
    }
    return {kind: sorted(names) for kind, names in found.items() if names}


def _counts(images: ImageSet) -> dict[str, int]:
    counts: dict[str, int] = {}
    for label in images.labels or []:
        if label is not None:
            counts[label] = counts.get(label, 0) + 1
    return counts


def _twins(names: set[str]) -> list[list[str]]:
    """Names that differ in case, spaces or hyphens alone."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault("".join(c for c in plain if c.isalnum()) or name, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


CLASS_FINDINGS = {
    "empty": "class folders without images",
    "one image": "classes of one training image",
    "alike in name": "class names that differ in case, spaces or hyphens alone",
    "not in the gallery": "classes of queries without a gallery image to find",
}


# ── the report ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Report:
    """All that was found. facts: one of each image. pairs: of positions among the facts.

    suspects: None where no model was given.
    """

    folder: Path
    facts: list[Facts]
    pairs: list[Pair]
    class_findings: dict[str, list[str]]
    suspects: list[Suspect] | None
    seconds: float

    @property
    def copies(self) -> list[Pair]:
        """Pairs of one photo, without those that a model alone finds alike."""
        return [pair for pair in self.pairs if pair.how != "model"]

    @property
    def broken(self) -> list[Facts]:
        return [facts for facts in self.facts if facts.broken]

    def odd(self) -> dict[str, list[Facts]]:
        """Kind (see ODD) → images, kinds without any left out."""
        by_kind = {kind: [f for f in self.facts if kind in f.odd] for kind in ODD}
        return {kind: found for kind, found in by_kind.items() if found}

    def leaks(self) -> list[Pair]:
        return leaks(self.facts, self.copies)

    def conflicts(self) -> list[Pair]:
        return conflicts(self.facts, self.copies)

    def groups(self) -> list[list[int]]:
        return groups_of(len(self.facts), self.copies)

    def excluded(self) -> dict[str, str]:
        """Name as `run --exclude` reads it → why it is better left out."""
        found = to_exclude(self.facts, self.pairs)
        return {self.facts[i].name: reason for i, reason in found.items()}

    def exclude_text(self) -> str:
        """The file that `--write-exclude` writes and `run --exclude` reads."""
        lines = ["# Training images that `vizsla check` would leave out, each below the reason."]
        for name, reason in self.excluded().items():
            plain = name.isprintable() and name == name.strip()
            shown = reason if reason.isprintable() else ascii(reason)
            lines += [f"# {shown}", name if plain else json.dumps(name)]
        return "\n".join(lines) + "\n"

    def class_table(self) -> Table:
        """Images of each class by role, then all of them; the number of unlabelled ones, if any."""
        roles = list(dict.fromkeys(facts.role for facts in self.facts))
        labels = sorted({facts.label for facts in self.facts if facts.label is not None})
        rows = {label: [0] * len(roles) for label in [*labels, None]}
        for facts in self.facts:
            rows[facts.label][roles.index(facts.role)] += 1
        table = [[label or "no label", *counts] for label, counts in rows.items() if any(counts)]
        total = ["all", *(sum(column) for column in zip(*rows.values(), strict=True))]
        return Table(["class", *roles], [*table, total])

    def suspect_table(self, most: int = MOST_SUSPECTS) -> Table:
        rows = [
            [self.facts[s.i].name, s.label, s.other, s.fit, s.other_fit]
            for s in (self.suspects or [])[:most]
        ]
        return Table(["image", "label", "looks like", "fits label", "fits other"], rows)

    def remarks(self) -> tuple[list[str], list[str]]:
        """What should be mended, and what is good to know: a line each."""
        return _alarms(self), _notes(self)

    def text(self) -> str:
        """Counts and suspects, for a terminal; see `remarks` for the rest."""
        table = self.class_table()
        lines = table.lines()
        if len(lines) > SHOWN_CLASSES:
            half = SHOWN_CLASSES // 2
            hidden = f"… {len(lines) - 2 * half - 1} more classes"
            lines = [*lines[: half + 1], hidden, *lines[-half:]]
        if self.suspects:
            title = f"Labels in doubt (the first {SHOWN_SUSPECTS} of {len(self.suspects)}):"
            lines += ["", title, *self.suspect_table(SHOWN_SUSPECTS).lines()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
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
            "pairs": [self._pair(pair) for pair in self.pairs],
            "groups": [[names[i] for i in group] for group in self.groups()],
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
            "likeness": round(pair.likeness, 4), "labels": [a.label, b.label],
            "leak": a.role != b.role, "conflict": bool(conflicts(self.facts, [pair])),
        }  # fmt: skip


def _alarms(report: Report) -> list[str]:
    facts = report.facts
    between: dict[tuple[str, str], list[Pair]] = {}
    for pair in report.leaks():
        between.setdefault((facts[pair.a].role, facts[pair.b].role), []).append(pair)
    lines = []
    if report.broken:
        shown = [f"{f.name} ({f.broken})" for f in report.broken]
        lines.append(f"{_n(len(shown), 'image')} cannot be read: {few(shown)}")
    for (first, second), pairs in between.items():
        copied = {pair.a for pair in pairs}
        what = f"{_n(len(copied), f'{first} image')} also in the {second} part"
        lines.append(f"{what}: {few([_said(facts, pair) for pair in pairs])}")
    against = report.conflicts()
    if against:
        shown = [f"{_said(facts, p)}, {facts[p.a].label}/{facts[p.b].label}" for p in against]
        lines.append(f"{_n(len(against), 'pair')} of copies with different labels: {few(shown)}")
    kinds = [kind for kind in report.odd() if kind not in REMARKS]
    lines += [_odd_line(report, kind) for kind in kinds]
    lines += [_class_line(kind, names) for kind, names in report.class_findings.items()]
    return lines


def _notes(report: Report) -> list[str]:
    lines = []
    inside = [p for p in report.copies if report.facts[p.a].role == report.facts[p.b].role]
    by_role: dict[str, list[Pair]] = {}
    for pair in inside:
        by_role.setdefault(report.facts[pair.a].role, []).append(pair)
    for role, pairs in by_role.items():
        kinds = ", ".join(
            f"{count} {how}" for how in HOWS if (count := sum(p.how == how for p in pairs))
        )
        lines.append(f"{_n(len(pairs), 'pair')} of copies inside the {role} part: {kinds}")
    almost = [pair for pair in report.pairs if pair.how == "model"]
    if almost:
        shown = few([_said(report.facts, pair) for pair in almost])
        lines.append(f"{_n(len(almost), 'pair')} almost the same to the model: {shown}")
    lines += [_odd_line(report, kind) for kind in report.odd() if kind in REMARKS]
    if report.suspects is None:
        lines.append("labels in doubt are looked for with a model: give --model")
    excluded = report.excluded()
    if excluded:
        lines.append(
            f"{_n(len(excluded), 'training image')} better left out: --write-exclude FILE lists "
            "them, `vizsla run --exclude FILE` leaves them out"
        )
    return lines


def _said(facts: Sequence[Facts], pair: Pair) -> str:
    return f"{facts[pair.a].name} = {facts[pair.b].name} ({pair.how})"


def _odd_line(report: Report, kind: str) -> str:
    found = report.odd()[kind]
    return f"{_n(len(found), 'image')} {kind} ({ODD[kind]}): {few([f.name for f in found])}"


def _class_line(kind: str, names: Sequence[str]) -> str:
    return f"{len(names)} {CLASS_FINDINGS[kind]}: {few(names, 8)}"


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
