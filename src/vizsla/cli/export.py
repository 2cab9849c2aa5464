"""Commands that hand a model to other software: export."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.parameters import Without
from vizsla.cli.sources import require_all_weights
from vizsla.option_fields import REQUIRED, option, same
from vizsla.options import ModelChoice, Printing, RunOptions

app = Commands()


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelChoice, Printing):
    """The options of `vizsla export`."""

    out: Path = option(REQUIRED, "The ONNX file to write.", "Output", "-o", "--out", usual=True)
    seed: int = same(RunOptions, "seed")


@app.command(epilog="Example: vizsla export resnet50 -o resnet50.onnx")
def export(
    model: Annotated[
        str, typer.Argument(help="A backbone's name, a saved embedder's folder, or a run's.")
    ],
    *,
    options: Annotated[
        ExportOptions, Without("model", "interpolation", "framing", "views", "tiles")
    ],
) -> None:
    """Export a model as ONNX, with its preprocessing as JSON beside it (an extra)."""
    require_all_weights([(model, options.weights)])
    from vizsla.model.export import export as export_embedder
    from vizsla.model.open_model import load_embedder

    embedder = load_embedder(replace(options, model=model), seed=options.seed)
    done = export_embedder(embedder, options.out)
    if options.as_json:
        print_json(
            {"onnx": str(done.path), "description": str(done.description), "dim": done.dim,
             "difference": done.difference}
        )  # fmt: skip
        return
    checked = "" if done.difference is None else f", 1 - cosine to torch {done.difference:.1e}"
    typer.echo(f"{done.path} (vectors of {done.dim} dimensions{checked}) and {done.description}")
