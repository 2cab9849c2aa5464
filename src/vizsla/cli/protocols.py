"""The command that lists protocols."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.options import Printing

if TYPE_CHECKING:
    from vizsla.score.protocols import Protocol

app = Commands()

WIDTH = 80  # of a narrow terminal


@dataclass(frozen=True, kw_only=True)
class ProtocolsOptions(Printing):
    """The options of `vizsla protocols`."""


@app.command(epilog="Example: vizsla protocols oxford-medium")
def protocols(
    names: Annotated[list[str] | None, typer.Argument(help="Only these protocols.")] = None,
    *,
    options: ProtocolsOptions,
) -> None:
    """List the protocols of papers that --protocol scores by, and how they differ."""
    from vizsla.score.protocols import PROTOCOLS, parse_protocol

    chosen = [parse_protocol(name) for name in names] if names else list(PROTOCOLS.values())
    if options.as_json:
        print_json([_record(protocol) for protocol in chosen])
        return
    typer.echo("\n\n".join(_text(protocol) for protocol in chosen))


def _record(protocol: "Protocol") -> dict[str, Any]:
    return {
        "name": protocol.name,
        "about": protocol.about,
        "relevant": protocol.relevant,
        "junk": protocol.junk,
        "means_over": protocol.means,
        "metrics": list(protocol.metrics),
        "differs": protocol.differs,
        "options": protocol.settings,
        "paper": protocol.paper,
    }


def _text(protocol: "Protocol") -> str:
    options = ", ".join(f"{k}={'…' if v is None else v}" for k, v in protocol.settings.items())
    lines = {
        "relevant": protocol.relevant, "junk": protocol.junk, "means over": protocol.means,
        "metrics": ", ".join(protocol.metrics), "differs": protocol.differs, "options": options,
        "paper": protocol.paper,
    }  # fmt: skip
    listed = [
        textwrap.fill(f"  {key:<10}  {value}", WIDTH, subsequent_indent=" " * 14)
        for key, value in lines.items()
        if value
    ]
    return "\n".join([f"{protocol.name}: {protocol.about}", *listed])
