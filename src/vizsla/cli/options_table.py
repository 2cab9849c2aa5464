"""All commands → the table of their options in docs/options.md.

`python -m vizsla.cli.options_table` writes it anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vizsla.cli.main import app
from vizsla.cli.parameters import Parameter, default_text
from vizsla.option_fields import GROUPS, REQUIRED, flag_of

DOCS = Path(__file__).parents[3] / "docs" / "options.md"
HEAD = "| group | name | flag | default | meaning | commands |\n|---|---|---|---|---|---|\n"


def every_command(command: Any = None, words: str = "") -> Iterator[tuple[str, Any]]:
    """(words, command) of each command and group: ("index build", …)."""
    command = command or typer.main.get_command(app)
    yield words, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from every_command(command.get_command(None, name), f"{words} {name}".strip())


def options_table() -> str:
    """Every option of every command in Markdown; a row for each meaning and default."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for words, command in every_command():
        for name, option in getattr(command.callback, "options", {}).items():
            rows.setdefault((_place(name, option), _cells(name, option)), []).append(words)
    return HEAD + "".join(
        f"| {cells} | {', '.join(commands)} |\n" for (_, cells), commands in sorted(rows.items())
    )


def _place(name: str, option: Parameter) -> tuple[int, bool, str]:
    return GROUPS.index(option.about.group), option.about.rare, name


def _cells(name: str, option: Parameter) -> str:
    about, default = option.about, option.default
    flag = "" if about.rare else f"`{flag_of(name, about)}`"
    shown = "required" if default is REQUIRED else "" if default is None else default_text(default)
    cells = (about.group, f"`{name}`", flag, about.shown or shown, about.text)
    return " | ".join(cell.replace("|", "\\|") for cell in cells)


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(text[: text.index(HEAD)] + options_table(), encoding="utf-8")
