"""Cells and lines → HTML. Knows nothing of what they mean."""

from collections.abc import Sequence
from html import escape


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    bar: int = -1,
    long: int = -1,
) -> str:
    """Cells are HTML. numbers: columns set to the right. bar, long: one column each."""
    kinds = [
        "number" if i in numbers else "bar" if i == bar else "long" if i == long else ""
        for i in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>' if name else "<td></td>"
        for name, kind in zip(columns, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="{k}">{c}</td>' for c, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    kind = ' class="bars"' if bar >= 0 else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
