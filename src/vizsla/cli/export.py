"""Commands that hand a model to other software: export."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.parameters import Without
from vizsla.cli.shared_options import AsJson, Quiet, Seed, Verbose
from vizsla.options import ModelChoice

app = Commands()


@app.command(epilog="Example: vizsla export resnet50 -o resnet50.onnx")
def export(
    model: Annotated[
        str, typer.Argument(help="A backbone's name, a saved embedder's folder, or a run's.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ONNX file to write.")],
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    choice: Annotated[ModelChoice, Without("interpolation", "views")],
) -> None:
    """Export a model as ONNX, with its preprocessing as JSON beside it (an extra)."""
    from vizsla.model.export import export as export_embedder
    from vizsla.run import inputs

    embedder = inputs.load_embedder(replace(choice, model=model), seed=seed)
    done = export_embedder(embedder, out)
    if as_json:
        print_json(
            {"onnx": str(done.path), "description": str(done.description), "dim": done.dim,
             "difference": done.difference}
        )  # fmt: skip
        return
    checked = "" if done.difference is None else f", 1 - cosine to torch {done.difference:.1e}"
    typer.echo(f"{done.path} (vectors of {done.dim} dimensions{checked}) and {done.description}")
