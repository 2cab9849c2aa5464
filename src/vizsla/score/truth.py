"""Labels, judgements and names of images → Truth: which gallery image is right for which query.

Knows no scores and no ranks; of a Ranking it uses only the names.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import join_labels
from vizsla.data.names import match_names, nfc
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.notebook import Shown, Summary, counted
from vizsla.search.ranking import Ranking

if TYPE_CHECKING:
    from vizsla.data.data_folders import DataFolders


@dataclass(frozen=True, eq=False, repr=False)
class Truth(Shown):
    """The labels of the queries and of the gallery, by id. None: no label.

    query_complete: these are all queries, so those that a ranking lacks count as wrong. False if
      roles are unknown: then the queries of the ranking are judged.
    gallery_complete: these are all gallery images, so it is known what a ranking lacks. False if
      labels come from the names in a submission: then recall and AP are unknown.
    one_set: query and gallery are one set; an id in both is one image, and never its own match.
    junk: query id → gallery ids that are neither right nor wrong for it. junk_of_all: those that
      are so for every query.
    attributes: column → query id → value, to slice scores by. gallery_attributes: the same of the
      gallery images, for protocols that compare the two (camera, position).
    relevant: query id → the gallery ids that are right for it, instead of those with its label.
      Labels are then used for slices only; an image that is in no set is wrong, and a query
      without a set is left out.
    grades: query id → gallery id → how relevant it is, 1 or more, for graded metrics and `rel=N`;
      None: every relevant image counts the same.
    levels: name → grades as `from_grades` takes them: several truths of one set (`at_level`).
    label_level: labels are paths, such as animal/dog/vizsla: two are equal if their first parts, so
      many, are, or all of them; the number that they have in common is the grade. None: they are
      whole.
    gallery_grades: gallery id → its grade for every query that it is relevant to; without `grades`.

    A label may stand for several, such as `dog¦pet` (data/label_sets.py): an image is then relevant
    to a query if they share one.
    """

    query: Mapping[str, str | None]
    gallery: Mapping[str, str | None]
    query_complete: bool = True
    gallery_complete: bool = True
    one_set: bool = False
    junk: Mapping[str, Collection[str]] = field(default_factory=dict)
    junk_of_all: frozenset[str] = frozenset()
    attributes: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    gallery_attributes: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    relevant: Mapping[str, Collection[str]] | None = None
    grades: Mapping[str, Mapping[str, int]] | None = None
    levels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    label_level: int | None = None
    gallery_grades: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.label_level is not None and self.label_level < 1:
            raise UsageError(f"level {self.label_level} of the labels: choose 1 (the top) or more")
        if self.relevant is not None:
            if not self.relevant:
                raise DataError("the truth judges no query at all, so nothing can be scored")
            return
        columns = self.attributes and self.gallery_attributes
        if columns and not any((*self.query.values(), *self.gallery.values())):
            return  # a protocol may judge by columns alone
        for role, labels in (("query", self.query), ("gallery", self.gallery)):
            if not any(label is not None for label in labels.values()):
                raise DataError(
                    f"the truth labels none of its {len(labels)} {role} images, so nothing can be "
                    "scored: give a labels file or a file-name pattern that does"
                )

    def summary(self) -> Summary:
        """How many queries and gallery images it labels or judges."""
        if self.relevant is not None:
            return Summary("Truth", [f"{counted(len(self.relevant), 'query', 'queries')} judged"])
        rows = [
            [role, len(labels), len({label for label in labels.values() if label is not None})]
            for role, labels in (("query", self.query), ("gallery", self.gallery))
        ]
        facts = [f"{role} {n:,} images of {c:,} classes" for role, n, c in rows]
        return Summary("Truth", facts, ["part", "images", "classes"], rows)

    def with_label_options(
        self,
        *,
        separator: str | None = None,
        level: int | None = None,
        grades_from: str | None = None,
    ) -> "Truth":
        """The truth with labels that are several, parted by `separator`, or paths (`label_level`).

        grades_from: a column of the gallery images with their grades. None changes nothing.
        DataError: there is no such column, or it holds other things than whole numbers.
        """
        if grades_from is not None:
            return replace(
                self.with_label_options(separator=separator, level=level),
                gallery_grades=_whole_numbers(self.gallery_attributes, grades_from),
            )
        if separator is None and level is None:
            return self

        def split(labels: Mapping[str, str | None]) -> dict[str, str | None]:
            return {
                name: join_labels(part.strip() for part in label.split(separator))
                if label
                else label
                for name, label in labels.items()
            }

        one = self if separator is None else replace(
            self, query=split(self.query), gallery=split(self.gallery)
        )  # fmt: skip
        return one if level is None else replace(one, label_level=level)

    @staticmethod
    def from_lists(
        query: Sequence[str],
        query_labels: Sequence[str | None],
        gallery: Sequence[str],
        gallery_labels: Sequence[str | None],
        *,
        gallery_complete: bool = True,
        one_set: bool = False,
    ) -> "Truth":
        """From ids and, in the same order, their labels."""
        return Truth(
            _paired(query, query_labels, "query"),
            _paired(gallery, gallery_labels, "gallery"),
            gallery_complete=gallery_complete,
            one_set=one_set,
        )

    @staticmethod
    def from_sets(
        query: ImageSet | Embeddings, gallery: ImageSet | Embeddings, *, one_set: bool = False
    ) -> "Truth":
        """From images or embeddings with labels; the queries' attributes can be sliced by."""
        return Truth(
            _paired(query.ids, query.labels or [None] * len(query.ids), "query"),
            _paired(gallery.ids, gallery.labels or [None] * len(gallery.ids), "gallery"),
            one_set=one_set,
            attributes=_attributes_of(query),
            gallery_attributes=_attributes_of(gallery),
        )

    @staticmethod
    def from_labels(
        table: pa.Table,
        *,
        one_set: bool = False,
        images: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> "Truth":
        """From a table with file, label and, at best, role ("query", "gallery"), as `read_labels`.

        A row without a role may be either: the queries are then those of the ranking, and the
        gallery is complete only if that of the ranking is. Other columns become attributes.
        images: the ids of queries and gallery that the names mean, see `data.names.match_names`.
        """
        from vizsla.data.tables import names_below_roles, names_of

        names = table.column_names
        others = [name for name in names if name not in ("file", "label", "role")]
        if "file" not in names or ("label" not in names and len(others) < 2):
            raise DataError(
                f"the truth has the columns {', '.join(names)}: it needs file and label"
            )
        files = names_below_roles(table)
        labels = _texts(table["label"].to_pylist()) if "label" in names else [None] * len(files)
        roles = table["role"].to_pylist() if "role" in names else None
        complete = roles is not None and all(roles)
        of_query, of_gallery = files, files
        if images is not None:  # a name that means none of them stays as it is
            as_query = names_of(table, images[0], "query")
            as_gallery = names_of(table, images[1], "gallery")
            of_query = [a or b for a, b in zip(as_query, files, strict=True)]
            of_gallery = [a or b for a, b in zip(as_gallery, files, strict=True)]
        query_labels = _labels_of("query", of_query, labels, roles)
        return Truth(
            query_labels,
            _labels_of("gallery", of_gallery, labels, roles),
            query_complete=complete,
            gallery_complete=complete,
            one_set=one_set,
            attributes={
                name: _labels_of("query", of_query, _texts(table[name].to_pylist()), roles, name)
                for name in others
            },
            gallery_attributes={
                name: _labels_of(
                    "gallery", of_gallery, _texts(table[name].to_pylist()), roles, name
                )
                for name in others
            },
        )

    @staticmethod
    def from_grades(
        grades: Mapping[str, Mapping[str, int]],
        *,
        labels: "Truth | None" = None,
        one_set: bool = False,
    ) -> "Truth":
        """From judgements, as `read_qrels` gives them: query id → gallery id → grade.

        A grade above 0 is right (how much counts only for graded metrics), 0 is wrong, one below 0
        is junk. Images that are not judged are wrong. labels: those of queries and gallery, for
        slices.
        """
        right = {q: {n: g for n, g in row.items() if g > 0} for q, row in grades.items()}
        return Truth(
            {query: labels.query.get(query) if labels else None for query in grades},
            labels.gallery if labels else {},
            gallery_complete=False,
            one_set=one_set,
            junk={
                query: junk
                for query, row in grades.items()
                if (junk := frozenset(name for name, grade in row.items() if grade < 0))
            },
            attributes=labels.attributes if labels else {},
            gallery_attributes=labels.gallery_attributes if labels else {},
            relevant={query: frozenset(row) for query, row in right.items()},
            grades=right,
        )

    def at_level(self, level: str) -> "Truth":
        """The truth of one of `levels`, which it keeps. UsageError: there is no such level."""
        if level not in self.levels:
            known = ", ".join(self.levels) or "none"
            raise UsageError(f"the truth has no level {level!r}: its levels are {known}")
        chosen = Truth.from_grades(self.levels[level], labels=self, one_set=self.one_set)
        return replace(chosen, levels=self.levels)

    @staticmethod
    def from_file(
        path: str | Path,
        *,
        one_set: bool = False,
        images: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> "Truth":
        """From a labels file; see from_labels."""
        from vizsla.data.tables import read_labels

        return Truth.from_labels(read_labels(path), one_set=one_set, images=images)

    @staticmethod
    def from_pattern(
        ranking: Ranking,
        pattern: str = "{label}_{n}",
        *,
        queries: Sequence[str] | None = None,
        gallery: Sequence[str] | None = None,
        one_set: bool = False,
    ) -> "Truth":
        """From the names in a ranking. queries, gallery: all their ids, if they are known.

        Otherwise the gallery is complete only if the ranking knows all of it; a submission names
        only the images that it retrieved.
        """
        from vizsla.data.tables import labels_from_pattern

        gallery_ids = ranking.gallery if gallery is None else gallery
        query_ids = ranking.queries if queries is None else queries
        return Truth.from_lists(
            query_ids,
            labels_from_pattern(query_ids, pattern),
            gallery_ids,
            labels_from_pattern(gallery_ids, pattern),
            gallery_complete=gallery is not None or knows_gallery(ranking),
            one_set=one_set,
        )


def named_as(truth: Truth, ranking: Ranking) -> Truth:
    """The truth with the ranking's names for images that the two spell differently.

    See `data.names.match_names`: names that are equal as they are written stay as they are.
    """
    of_levels = [row for grades in truth.levels.values() for row in grades.items()]
    queries = {*(truth.relevant or truth.query), *(query for query, _ in of_levels)}
    images = {*truth.gallery}.union(
        *(truth.relevant or {}).values(), *truth.junk.values(), *(row for _, row in of_levels)
    )
    query = _renamed(queries, ranking.queries, "query")
    gallery = _renamed(images, ranking.gallery, "gallery")
    if not query and not gallery:
        return truth

    def by_query(of: Mapping[str, Any]) -> dict[str, Any]:
        return {query.get(name, name): value for name, value in of.items()}

    def by_image(of: Mapping[str, Any]) -> dict[str, Any]:
        return {gallery.get(name, name): value for name, value in of.items()}

    def sets(of: Mapping[str, Collection[str]]) -> dict[str, Collection[str]]:
        return by_query({q: {gallery.get(n, n) for n in names} for q, names in of.items()})

    def graded(of: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
        return by_query({q: by_image(row) for q, row in of.items()})

    return replace(
        truth,
        query=by_query(truth.query),
        gallery=by_image(truth.gallery),
        junk=sets(truth.junk),
        junk_of_all=frozenset(gallery.get(name, name) for name in truth.junk_of_all),
        attributes={name: by_query(of) for name, of in truth.attributes.items()},
        gallery_attributes={name: by_image(of) for name, of in truth.gallery_attributes.items()},
        relevant=None if truth.relevant is None else sets(truth.relevant),
        grades=None if truth.grades is None else graded(truth.grades),
        levels={name: graded(of) for name, of in truth.levels.items()},
    )


def _renamed(names: set[str], known: Sequence[str], role: str) -> dict[str, str]:
    """Name of the truth → the ranking's other spelling of it."""
    if names >= set(known):  # all are spelled alike: nothing is left to mean
        return {}
    written = sorted(names)
    found = match_names(written, known, roles=[role] * len(written), origin="the truth")
    pairs = zip(written, found, strict=True)
    return {name: image for name, image in pairs if image is not None and image != name}


def knows_gallery(ranking: Ranking) -> bool:
    """Whether `ranking.gallery` is the whole gallery, and not only what was retrieved of it."""
    return ranking.gallery_size is not None and ranking.gallery_size == len(ranking.gallery)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _paired(ids: Sequence[str], labels: Sequence[str | None], role: str) -> dict[str, str | None]:
    if len(ids) != len(labels):
        raise DataError(f"{len(labels)} labels for {len(ids)} {role} ids: expected one each")
    paired = dict(zip(ids, _texts(labels), strict=True))
    if len(paired) != len(ids):
        raise DataError(f"some {role} ids occur twice among the {len(ids)}: they must be unique")
    return paired


def _whole_numbers(
    attributes: Mapping[str, Mapping[str, str | None]], column: str
) -> dict[str, int]:
    if column not in attributes:
        known = ", ".join(attributes) or "none"
        raise DataError(f"the gallery images have no column {column}, only {known}")
    try:
        return {name: int(value or 0) for name, value in attributes[column].items()}
    except ValueError as error:
        raise DataError(f"the column {column} holds more than whole numbers ({error})") from error


def _texts(values: Sequence[Any]) -> list[str | None]:
    """Values as text in the form NFC, as all labels have; None for null and for an empty cell."""

    def text(value: Any) -> str | None:
        if value is None or value == "":
            return None
        return str(value).lower() if isinstance(value, bool) else nfc(str(value))

    return [text(value) for value in values]


def _labels_of(
    role: str,
    files: Sequence[str],
    labels: Sequence[str | None],
    roles: Sequence[str | None] | None,
    what: str = "label",
) -> dict[str, str | None]:
    """File → label over the rows of one role; DataError if two rows disagree."""
    found: dict[str, str | None] = {}
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        if roles is not None and roles[i] not in (role, None):
            continue
        if found.setdefault(file, label) != label:
            raise DataError(
                f"the truth gives {role} {file} two values of {what}, {found[file]} and {label}: "
                "keep one"
            )
    if not found:
        raise DataError(f"the truth has no rows with role {role}")
    return found


def _attributes_of(images: ImageSet | Embeddings) -> dict[str, dict[str, str | None]]:
    """Column → id → value, without the label."""
    table = images.attributes
    return {
        name: dict(zip(images.ids, _texts(table[name].to_pylist()), strict=True))
        for name in table.column_names
        if name != "label"
    }


# ── the truth of a data folder ───────────────────────────────────────────────────────────────────


def truth_of_folders(
    data: "DataFolders",
    *,
    labels: str | Path | None = None,
    labels_from: str | None = None,
    one_set: bool = False,
) -> Truth | None:
    """The truth of a data folder: from a labels file, file names, or the folder itself.

    An image without a label is part of it too. None if nothing gives labels.
    """
    from vizsla.data.tables import labels_from_pattern

    query, gallery, one_set = data.query, data.gallery, one_set or data.one_set
    path = labels or (None if data.truth_file else data.labels_file)
    if labels and labels_from:
        raise UsageError("--labels and --labels-from are mutually exclusive: give one")
    if labels_from:
        query = query.with_labels(labels_from_pattern(query.ids, labels_from))
        gallery = gallery.with_labels(labels_from_pattern(gallery.ids, labels_from))
    elif path is not None:
        query = query.with_labels_file(path, "query")
        gallery = gallery.with_labels_file(path, "gallery")
    elif not (any(query.labels or []) and any(gallery.labels or [])):
        return None
    return Truth.from_sets(query, gallery, one_set=one_set)
