"""The command that fuses several rankings into one: fuse."""

from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, ProgressShown, print_json
from vizsla.cli.shared_options import AsJson, Quiet, Verbose, fusion_weights
from vizsla.cli.sources import read_ranking
from vizsla.errors import UsageError
from vizsla.options import FusionOptions, RankingOptions

app = Commands()


@app.command(epilog="Example: vizsla fuse runs/ID1 runs/ID2 --fusion rrf -o fused.parquet")
def fuse(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs, rankings or submissions of the same queries.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ranking to write (Parquet).")],
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", min=1, help="Ranks of the fused ranking.", show_default="as the longest"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    fusing: FusionOptions,
    ranking_options: RankingOptions,
) -> None:
    """Fuse several rankings into one, by scores, ranks or vectors.

    Rankings may differ in depth and images.

    --fusion-weights auto and --fusion concat need runs, with their training images.
    """
    from vizsla.run import fused_runs
    from vizsla.search.fusion import fused

    if len(sources) < 2:
        raise UsageError("give two runs or rankings, or more")
    config = fused_runs.FusionConfig(
        fusing.fusion, fusion_weights(fusing.fusion_weights), fusing.fusion_whiten,
        ranking_options.refine, ranking_options.refine_uses,
    )  # fmt: skip
    config.check(len(sources))
    if fusing.fusion != fused_runs.CONCAT and ranking_options.refine != "none":
        raise UsageError("--refine only works with --fusion concat here: refine each run instead")
    if fusing.fusion == fused_runs.CONCAT or config.weights == fused_runs.AUTO:
        members = [fused_runs.Member.of(source) for source in sources]
        with ProgressShown(quiet) as progress:
            found = fused_runs.fuse_runs(members, config, progress)
        ranking = found.ranking if depth is None else found.ranking.head(depth)
        record = found.record(config)
        lines = [*(found.weights_choice.lines() if found.weights_choice else []),
                 *(found.refinement_choice.lines() if found.refinement_choice else [])]  # fmt: skip
    else:
        assert not isinstance(config.weights, str)
        ranking = fused(
            [read_ranking(source) for source in sources],
            method=fusing.fusion, weights=config.weights, depth=depth,
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
        typer.echo(f"fused by {fusing.fusion}, weights {kept}")
