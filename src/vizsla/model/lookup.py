"""A backbone's name → its BackboneSpec: from our catalogue, or by its name in its library."""

import difflib
import re

from vizsla.errors import UsageError
from vizsla.model.catalogue import BACKBONES, OPEN_FORMS, BackboneSpec, did_you_mean, named_like


def find_backbone(name: str) -> BackboneSpec:
    """The backbone of this name; case, hyphens and underscores do not matter.

    `timm:NAME` and `openclip:ARCH/TAG` are looked up in these libraries. UsageError with the
    nearest names for an unknown one.
    """
    library, colon, rest = name.strip().partition(":")
    if colon:
        return _open_spec(library.lower(), rest)
    known = {_letters(key): spec for key, spec in BACKBONES.items()}
    if spec := known.get(_letters(name)):
        return spec
    near = difflib.get_close_matches(_letters(name), known, n=3, cutoff=0.5)
    raise UsageError(
        f"no backbone is called {name!r}{did_you_mean(known[key].name for key in near)}: "
        f"`vizsla models` lists them all; any other by {OPEN_FORMS}"
    )


def _open_spec(library: str, rest: str) -> BackboneSpec:
    """The backbone `timm:NAME` or `openclip:ARCH/TAG`; UsageError where there is none."""
    if library == "timm":
        return _open_timm(rest)
    if library == "openclip":
        return _open_clip(rest)
    known = named_like(library, *rest.partition(".")[::2])
    if known is None:
        raise UsageError(f"no backbone is called '{library}:{rest}': expected {OPEN_FORMS}")
    return known


def _open_timm(name: str) -> BackboneSpec:
    import timm

    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        names = timm.list_models() + timm.list_pretrained()
        near = did_you_mean(difflib.get_close_matches(name, names, n=3))
        raise UsageError(f"timm has no model {name!r}{near}: timm.list_models() lists them")
    cfg = timm.get_pretrained_cfg(name)
    tag = tag or (cfg.tag if cfg else "") or ""
    quick = architecture.replace("_clip_", "_clip_quickgelu_")
    if cfg and "QuickGELU" in str(cfg.notes) and timm.is_model(quick):
        architecture = quick  # timm names the activation that these weights need apart
    alike = next((s for s in BACKBONES.values() if s.architecture == architecture), None)
    return named_like("timm", architecture, tag) or BackboneSpec(
        f"timm:{architecture}{'.' if tag else ''}{tag}",
        "timm",
        architecture,
        tag or None,
        alike.pooling if alike else "native",
        licence=(cfg.license if cfg else None) or "unknown",
    )


def _open_clip(name: str) -> BackboneSpec:
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        near = did_you_mean(difflib.get_close_matches(architecture, open_clip.list_models(), n=3))
        raise UsageError(
            f"open_clip has no architecture {architecture!r}{near}: open_clip.list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tags and tag not in tags:
        nearest = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags[:5]
        raise UsageError(
            f"openclip:{architecture}/TAG needs a TAG, which says also how pictures are prepared: "
            f"{', '.join(nearest)}, … (open_clip.list_pretrained_tags_by_model({architecture!r}))"
        )
    quick = f"{architecture}-quickgelu"
    needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    if needs_quick and quick in open_clip.list_models():
        architecture = quick
    return named_like("openclip", architecture, tag or None) or BackboneSpec(
        f"openclip:{architecture}{'/' if tag else ''}{tag}",
        "openclip",
        architecture,
        tag or None,
        "native",
        reads_text=True,
    )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
