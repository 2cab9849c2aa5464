"""How a gallery was re-ranked → lines on the terminal."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vizsla.choose.refinement import RefinementChoice
    from vizsla.search.chain import Chain


def print_refined(chain: "Chain", choice: "RefinementChoice | None") -> None:
    """How the chain was chosen, and what it uses."""
    if choice is not None:
        typer.echo("\n".join([*choice.lines(), ""]))
    elif chain.steps:
        typer.echo(f"refined by {chain}, which uses {chain.words}")
