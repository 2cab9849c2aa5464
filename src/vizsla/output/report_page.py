"""A run and its truth → one self-contained page: numbers, curves, pictures and a map.

Needs no network and no other file; everything but the map's hovering works without JavaScript.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from vizsla.output import report_numbers as numbers
from vizsla.output import report_pictures as pictures
from vizsla.output.markup import bullets, table
from vizsla.output.report_data import Material


def report(material: Material, *, projection: str = "tsne") -> str:
    """The whole page as text. projection: "tsne" or "pca", for the map."""
    sections = [
        ("warnings", "Warnings", _warnings(material)),
        ("scores", "Scores", numbers.scores_part(material)),
        ("curves", "Curves", numbers.curves_part(material)),
        ("classes", "Classes", numbers.classes_part(material)),
        ("confusion", "Confusion", numbers.confusion_part(material)),
        ("sheets", "Queries" if material.scores is None else "Worst and best queries",
         pictures.sheets_part(material)),
        ("map", "Map of the embeddings", pictures.map_part(material, projection)),
        ("broken", "Broken images", _broken(material)),
        ("configuration", "Configuration", _configuration(material)),
    ]  # fmt: skip
    return _page(material, [(key, title, body) for key, title, body in sections if body])


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _page(material: Material, sections: Sequence[tuple[str, str, str]]) -> str:
    style, script = _resource("report.css"), _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    title = f"{material.name} on {Path(material.config['options']['data']).name}"
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    body = "\n".join(
        f'<section id="{key}" class="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(name)}</h2>\n{content}\n</section>'
        for key, name, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n{_subtitle(material)}\n"
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{numbers.headline_part(material)}\n{body}\n</main>\n<script>{script}</script>\n"
        "</body>\n</html>\n"
    )


@functools.cache
def _resource(name: str) -> str:
    return resources.files("vizsla.output").joinpath(name).read_text(encoding="utf-8")


def _subtitle(material: Material) -> str:
    stamp = material.run.id
    when = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]} {stamp[9:11]}:{stamp[11:13]}"
    pooling = material.config["options"].get("pooling") or material.record.get("pooling_type")
    tuned = material.record.get("is_finetuned")
    parts = [
        f"{len(material.ranking)} queries",
        f"{len(material.gallery)} gallery images",
        f"{pooling} pooling" if pooling else "",
        "fine-tuned" if tuned else "frozen" if tuned is False else "",
        f"run {stamp} ({when})",
    ]
    return f'<p class="soft">{escape(" · ".join(filter(None, parts)))}</p>'


def _warnings(material: Material) -> str:
    found = material.record.get("warnings") or []
    return bullets(found)


def _broken(material: Material) -> str:
    rows = [
        [role, escape(name), escape(reason)]
        for role, part in (("query", material.queries), ("gallery", material.gallery))
        for name, reason in part.broken
    ]
    return table(["role", "image", "reason"], rows, long=2) if rows else ""


def _configuration(material: Material) -> str:
    options = _flat(material.config["options"])
    start, model_id = material.config["embedder"]["model_id"], material.queries.model_id
    facts = {
        "model id": model_id,
        "model id before it was fitted": start if start != model_id else None,
        "dimensions": material.queries.dim,
        "runtime": material.record.get("runtime_seconds"),
        **material.config["versions"],
    }
    known = {**options, "weights": _weights(material), **facts}
    rows = [
        [escape(key), escape(_with_unit(key, value))]
        for key, value in known.items()
        if value is not None
    ]
    again = f"vizsla run --again {material.run.folder}"
    return f"<p>Again: <code>{escape(again)}</code></p>" + table(["option", "value"], rows, long=1)


def _weights(material: Material) -> str:
    """As they were given; of a saved embedder, which holds its own, where those came from."""
    given, record = str(material.config["options"]["weights"]), material.record
    if not Path(material.config["options"]["model"]).is_absolute():
        return given
    told = record.get("weights") or "not known"
    return f"the embedder's own ({record.get('weights_file') or told})"


def _with_unit(key: str, value: Any) -> str:
    """A duration with its unit, all else as it is."""
    name = key.rpartition(".")[2]
    if isinstance(value, int | float) and name in ("budget", "save_seconds", "runtime"):
        return f"{value:g} s"
    return str(value)


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
