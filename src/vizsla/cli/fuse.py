"""The command that makes one ranking of several: fuse."""

from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import ProgressShown, app, print_json
from vizsla.cli.inputs import read_ranking
from vizsla.cli.options import (
    AsJson,
    Fusion,
    FusionWeights,
    FusionWhiten,
    Quiet,
    Refine,
    RefineUses,
    Verbose,
    fusion_weights,
)
from vizsla.errors import UsageError


@app.command(epilog="Example: vizsla fuse runs/ID1 runs/ID2 --fusion rrf -o fused.parquet")
def fuse(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs, rankings or submissions of the same queries.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ranking to write (Parquet).")],
    fusion: Fusion = "zscore",
    weights: FusionWeights = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="How far it reaches.", show_default="as the longest"),
    ] = None,
    whiten: FusionWhiten = "shrunk",
    refine: Refine = "none",
    refine_uses: RefineUses = "queries",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Several rankings → one, by scores, ranks or vectors. They may differ in depth and images.

    --fusion-weights auto and --fusion concat need runs, with the training images they had.
    """
    from vizsla.run import several_models
    from vizsla.search.fusion import fused

    if len(sources) < 2:
        raise UsageError("give two runs or rankings, or more")
    config = several_models.FusionConfig(
        fusion, fusion_weights(weights), whiten, refine, refine_uses
    )
    config.check(len(sources))
    if fusion != several_models.CONCAT and refine != "none":
        raise UsageError("--refine here is for --fusion concat: refine each run instead")
    if fusion == several_models.CONCAT or config.weights == several_models.AUTO:
        members = [several_models.Member.of(source) for source in sources]
        with ProgressShown(quiet) as progress:
            found = several_models.fuse_runs(members, config, progress)
        ranking = found.ranking if depth is None else found.ranking.head(depth)
        record = found.record(config)
        lines = [*(found.choice.lines() if found.choice else []),
                 *(found.refined.lines() if found.refined else [])]  # fmt: skip
    else:
        assert not isinstance(config.weights, str)
        ranking = fused(
            [read_ranking(source) for source in sources],
            method=fusion, weights=config.weights, depth=depth,
        )  # fmt: skip
        record = {key: ranking.origin["fusion"][key] for key in ("method", "weights")}
        lines = []
    ranking.save(out)
    about = {"ranking": str(out), "queries": len(ranking), "depth": ranking.depth}
    if as_json:
        print_json({**about, "fusion": record})
    else:
        typer.echo("\n".join([*lines, *([""] if lines else [])]), nl=bool(lines))
        kept = ", ".join(f"{weight:.3g}" for weight in record["weights"])
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {out}")
        typer.echo(f"fused by {fusion}, weights {kept}")
