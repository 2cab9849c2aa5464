"""The kinds of index, and which one suits so many images."""

from vizsla.search import ann

KINDS = ("exact", *ann.KINDS)
EXACT_UP_TO = 50_000  # images; so many are looked at in some milliseconds


def choose_kind(size: int, dim: int, memory: int | None = None) -> tuple[str, str]:
    """The kind for so many images, and why: the quickest whose structure fits the memory."""
    then = f"{size} images when it was built"  # some may come or go later
    if size <= EXACT_UP_TO:
        return (
            "exact",
            f"{then}: exact search takes some milliseconds up to {EXACT_UP_TO}",
        )
    limit = ann.memory_here() if memory is None else memory
    said = "half of this machine's memory" if memory is None else "the memory given"
    needed = {kind: ann.bytes_needed(kind, size, dim) for kind in ("hnsw", "ivfsq8", "ivfpq")}
    for kind, taken in needed.items():
        if taken <= limit:
            return kind, (
                f"{then}: the quickest that fits, {taken / 1e6:.0f} MB of {said} "
                f"({limit / 1e6:.0f} MB)"
            )
    return "exact", (
        f"{then}: even ivfpq takes {needed['ivfpq'] / 1e6:.0f} MB, more than {said} "
        f"({limit / 1e6:.0f} MB)"
    )
