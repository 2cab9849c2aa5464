"""A check's report → one self-contained page with the pictures in question.

Needs no network, no other file and no JavaScript. Shares its look with the report of a run.
"""

from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path, PurePosixPath

from PIL import Image

from vizsla.audit.duplicates import HOWS, TEST, Pair
from vizsla.audit.file_scan import ODD, REMARKS, Facts
from vizsla.audit.findings import CLASS_FINDINGS, Report
from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.errors import ImageError
from vizsla.output.embedding_map import data_uri
from vizsla.output.markup import bullets, table

THUMBNAIL = 150  # px, the longer side
MOST_CARDS = 60  # of a section
MOST_TILES = 12  # of a card
MOST_ROWS = 300  # of a table

_STYLE = """
.cards { display: grid; gap: 0.75rem; align-items: start;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 0.6rem; min-width: 0; }
.card.wide-card { grid-column: 1 / -1; }
.card > p { font-size: 0.8rem; margin: 0 0 0.4rem; color: var(--soft); overflow-wrap: anywhere; }
.card .bad { color: var(--wrong); font-weight: 600; }
.card ol.tiles { grid-template-columns: 1fr 1fr; }
.card.wide-card ol.tiles, ol.tiles.many {
  grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }
ol.tiles span.role { color: var(--soft); } ol.tiles b { color: inherit; }
.heads a { color: inherit; text-decoration: none; display: block; }
.heads .bad b { color: var(--wrong); }
@media (max-width: 40rem) {
  .card.wide-card ol.tiles, ol.tiles.many { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""


def page(report: Report, *, max_pixels: int = MAX_PIXELS) -> str:
    """The whole page as text."""
    album = _Album(report, max_pixels)
    alarms, notes = report.remarks()
    groups = _sorted_groups(report)
    sections = [
        ("warnings", "What should be mended", bullets(alarms)),
        ("notes", "Good to know", bullets(notes)),
        ("leaks", "Training images that are also in the test part",
         album.groups(groups["leaks"])),
        ("shared", "Queries that are also in the gallery", album.groups(groups["shared"])),
        ("conflicts", "Copies with different labels", album.groups(groups["conflicts"])),
        ("doubts", "Labels in doubt", _doubts(report, album)),
        ("copies", "Other copies", album.groups(groups["copies"])),
        ("almost", "Almost the same to the model",
         album.pairs([pair for pair in report.pairs if pair.how == "model"])),
        ("broken", "Broken images", _broken(report)),
        ("odd", "Odd images", _odd(report, album)),
        ("classes", "Classes", _classes(report)),
        ("excluded", "Better left out", _excluded(report)),
    ]  # fmt: skip
    return _page(report, [part for part in sections if part[2]])


def _sorted_groups(report: Report) -> dict[str, list[list[int]]]:
    """Each group of copies once, under the gravest of what it is."""
    clashing = {i for pair in report.conflicts() for i in (pair.a, pair.b)}
    found: dict[str, list[list[int]]] = {kind: [] for kind in ("leaks", "shared", "conflicts")}
    found["copies"] = []
    for group in report.groups():
        roles = {report.facts[i].role for i in group}
        if len(roles) > 1:
            kind = "leaks" if "training" in roles else "shared"
        else:
            kind = "conflicts" if clashing & set(group) else "copies"
        found[kind].append(group)
    return found


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────


class _Album:
    """Tiles and cards of the pictures of one report."""

    def __init__(self, report: Report, max_pixels: int) -> None:
        self.facts = report.facts
        self.max_pixels = max_pixels
        self.pairs_of: dict[int, list[Pair]] = {}
        for pair in report.pairs:
            self.pairs_of.setdefault(pair.a, []).append(pair)
        self.clashing = {(pair.a, pair.b) for pair in report.conflicts()}

    def groups(self, groups: Sequence[Sequence[int]]) -> str:
        def card(group: Sequence[int]) -> str:
            inside = set(group)
            pairs = [p for i in group for p in self.pairs_of.get(i, ()) if p.b in inside]
            return self._card(group, [pair for pair in pairs if pair.how != "model"])

        return _cards([card(group) for group in groups[:MOST_CARDS]], len(groups))

    def pairs(self, pairs: Sequence[Pair]) -> str:
        cards = [self._card([pair.a, pair.b], [pair]) for pair in pairs[:MOST_CARDS]]
        return _cards(cards, len(pairs))

    def tiles(self, positions: Sequence[int], lines: Callable[[int], Sequence[str]]) -> str:
        """lines: what stands below each picture, as HTML."""
        tiles = [self._tile(i, lines(i)) for i in positions]
        return f'<ol class="tiles many">{"".join(tiles)}</ol>'

    def _card(self, group: Sequence[int], pairs: Sequence[Pair]) -> str:
        kinds = [_kind(how, [p for p in pairs if p.how == how]) for how in HOWS]
        about = escape("; ".join(filter(None, kinds)))
        if any((pair.a, pair.b) in self.clashing for pair in pairs):
            about += ' · <span class="bad">labels differ</span>'
        if len(group) > MOST_TILES:
            about += f" · {MOST_TILES} of {len(group)} are shown"
        test_first = sorted(group, key=lambda i: (self.facts[i].role not in TEST, i))
        tiles = [self._tile(i, self._caption(i)) for i in test_first[:MOST_TILES]]
        kind = "card wide-card" if len(group) > 2 else "card"
        return (
            f'<article class="{kind}"><p>{about}</p><ol class="tiles">{"".join(tiles)}</ol>'
            "</article>"
        )

    def _caption(self, i: int) -> list[str]:
        label = self.facts[i].label
        return [f'<span class="role">{escape(self.facts[i].role)}</span> {escape(label or "")}']

    def _tile(self, i: int, lines: Sequence[str]) -> str:
        facts = self.facts[i]
        name = escape(PurePosixPath(facts.id).name)
        shown = "".join(f"<span>{line}</span>" for line in lines)
        return (
            f"<li>{self._picture(facts)}{shown}"
            f'<span class="soft" title="{escape(facts.name)}">{name}</span></li>'
        )

    def _picture(self, facts: Facts) -> str:
        try:
            image = read_image(facts.path, max_pixels=self.max_pixels, at_least=THUMBNAIL)
        except ImageError as error:
            return f'<div class="none">no picture: {escape(str(error))}</div>'
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        width, height = image.size
        return (
            f'<img src="{data_uri(image, quality=70)}" alt="{escape(facts.name)}" '
            f'width="{width}" height="{height}">'
        )


def _kind(how: str, pairs: Sequence[Pair]) -> str:
    """Such as `near 0.97`; the lowest likeness of the pairs, rounded down."""
    if not pairs:
        return ""
    lowest = min(pair.likeness for pair in pairs)
    if how == "turned":
        how = ", ".join(sorted({pair.turn for pair in pairs}))
    elif how == "model":
        how = "cosine"
    return f"{how} {int(lowest * 100) / 100:.2f}" if lowest < 1 else how


def _cards(cards: Sequence[str], total: int) -> str:
    if not cards:
        return ""
    more = "" if total <= len(cards) else f"<p>The first {len(cards)} of {total}; {_ALL}.</p>"
    return f'{more}<div class="cards">{"".join(cards)}</div>'


_ALL = "all of them are in the JSON (<code>-o FILE</code>)"


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _doubts(report: Report, album: _Album) -> str:
    if not report.suspects:
        return ""
    by_position = {suspect.i: suspect for suspect in report.suspects[:MOST_CARDS]}

    def lines(i: int) -> list[str]:
        suspect = by_position[i]
        return [
            f"<b>{escape(suspect.label)}</b> {suspect.fit:.2f}",
            f"→ <b>{escape(suspect.other)}</b> {suspect.other_fit:.2f}",
            f'<span class="role">{escape(report.facts[i].role)}</span>',
        ]

    said = (
        "The label, how well the image fits it, and the class that it fits better, as judged by "
        "all other images. The most doubtful come first; further down more and more are right."
    )
    return f'<p class="soft">{said}</p>{album.tiles(list(by_position), lines)}'


def _broken(report: Report) -> str:
    rows = [[escape(facts.name), escape(facts.broken or "")] for facts in report.broken]
    return _long_table(["image", "reason"], rows, long=1)


def _odd(report: Report, album: _Album) -> str:
    positions = {facts.name: i for i, facts in enumerate(report.facts)}
    parts = []
    for kind, found in report.odd().items():
        title = f"<h3>{escape(kind[0].upper() + kind[1:])}: {len(found)}</h3>"
        about = f'<p class="soft">{escape(ODD[kind])}</p>'
        if kind in REMARKS:
            names = bullets([f"{f.name} ({f.form})" for f in found[:MOST_ROWS]])
            parts.append(f"{title}{about}<details><summary>Which</summary>{names}</details>")
        else:
            tiles = album.tiles(
                [positions[f.name] for f in found[:MOST_CARDS]],
                lambda i: [_size(report.facts[i])],
            )
            more = f"<p>The first {MOST_CARDS}; {_ALL}.</p>" if len(found) > MOST_CARDS else ""
            parts.append(f"{title}{about}{more}{tiles}")
    return "".join(parts)


def _size(facts: Facts) -> str:
    return f"{facts.size[0]} × {facts.size[1]} {escape(facts.form)}"


def _classes(report: Report) -> str:
    found = [
        f"{CLASS_FINDINGS[kind]}: {', '.join(names)}"
        for kind, names in report.class_findings.items()
    ]
    counts = report.class_table()
    largest = max((max(row[1:]) for row in counts.rows[:-1]), default=1)
    rows = []
    for row in counts.rows:
        bar = f'<i style="width:{100 * max(row[1:]) / largest:.1f}%"></i>'
        bar = bar if row is not counts.rows[-1] else ""
        rows.append([escape(row[0]), *(f"{count:,}" for count in row[1:]), bar])
    columns = [*counts.columns, ""]
    numbers = range(1, len(counts.columns))
    return bullets(found) + table(columns, rows, numbers=numbers, bar=len(columns) - 1)


def _excluded(report: Report) -> str:
    rows = [[escape(name), escape(reason)] for name, reason in report.excluded().items()]
    if not rows:
        return ""
    said = (
        "Training images that <code>--write-exclude FILE</code> lists and "
        "<code>vizsla run --exclude FILE</code> leaves out."
    )
    found = _long_table(["image", "reason"], rows, long=1)
    return f"<p>{said}</p><details><summary>All {len(rows)}</summary>{found}</details>"


def _long_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, long: int) -> str:
    if not rows:
        return ""
    more = f"<p>The first {MOST_ROWS}; {_ALL}.</p>" if len(rows) > MOST_ROWS else ""
    return more + table(columns, rows[:MOST_ROWS], long=long)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _page(report: Report, sections: Sequence[tuple[str, str, str]]) -> str:
    style = resources.files("vizsla.output").joinpath("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    name = Path(report.folder).resolve().name
    title = escape(f"Check of {name}")
    links = "".join(f'<li><a href="#{key}">{escape(text)}</a></li>' for key, text, _ in sections)
    body = "\n".join(
        f'<section id="{key}" class="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(text)}</h2>\n{content}\n</section>'
        for key, text, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>\n{_subtitle(report)}\n"
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{_heads(report, {key for key, _, _ in sections})}\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _subtitle(report: Report) -> str:
    table = report.class_table()
    counts = zip(table.columns[1:], table.rows[-1][1:], strict=True)
    parts = [f"{count:,} {role} images" for role, count in counts]
    return f'<p class="soft">{escape(" · ".join([*parts, f"{report.seconds:.0f} s"]))}</p>'


def _heads(report: Report, there: set[str]) -> str:
    """The numbers that matter, each with a link to its part where there is one."""
    between = report.leaks()
    leaked = {p.a for p in between if report.facts[p.a].role == "training"}
    shared = {p.a for p in between if report.facts[p.a].role != "training"}
    numbers = [
        ("leaks", len(leaked), "training images also in the test part"),
        ("shared", len(shared), "queries also in the gallery"),
        ("conflicts", len(report.conflicts()), "pairs of copies with different labels"),
        ("copies", len(report.copies), "pairs of copies in all"),
        ("broken", len(report.broken), "broken images"),
        ("doubts", None if report.suspects is None else len(report.suspects), "labels in doubt"),
    ]
    items = []
    for key, number, text in numbers:
        kind = "bad" if number and key in ("leaks", "conflicts", "broken") else ""
        shown = "–" if number is None else f"{number:,}"
        content = f"<b>{shown}</b><small>{text}</small>"
        link = f'<a href="#{key}">{content}</a>' if key in there else content
        items.append(f'<li class="{kind}">{link}</li>')
    return f'<ul class="heads">{"".join(items)}</ul>'
