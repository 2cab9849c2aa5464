"""The command that fuses several rankings into one: fuse."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.sources import read_ranking
from vizsla.errors import UsageError
from vizsla.option_fields import REQUIRED, option
from vizsla.options import FusionOptions, Printing, RankingOptions
from vizsla.progress import ProgressShown

app = Commands()


@dataclass(frozen=True, kw_only=True)
class FuseOptions(FusionOptions, RankingOptions, Printing):
    """The options of `vizsla fuse`."""

    out: Path = option(
        REQUIRED, "The ranking to write (Parquet).", "Output", "-o", "--out", usual=True
    )
    depth: int | None = option(
        None, "Ranks of the fused ranking.", "Ranking", minimum=1, shown="as the longest"
    )


@app.command(epilog="Example: vizsla fuse runs/ID1 runs/ID2 --fusion rrf -o fused.parquet")
def fuse(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs, rankings or submissions of the same queries.")
    ],
    *,
    options: FuseOptions,
) -> None:
    """Fuse several rankings into one, by scores, ranks or vectors.

    Rankings may differ in depth and images.

    --fusion-weights auto, --fusion concat and calibrated need runs, with their training images.
    """
    from vizsla.run import fused_runs
    from vizsla.search.fusion import CALIBRATED, fused

    if len(sources) < 2:
        raise UsageError("give two runs or rankings, or more")
    config = fused_runs.FusionConfig(
        options.fusion, options.fusion_weights, options.fusion_whiten,
        options.refine, options.refine_uses,
    )  # fmt: skip
    config.check(len(sources))
    if options.fusion != fused_runs.CONCAT and options.refine != "none":
        raise UsageError("--refine only works with --fusion concat here: refine each run instead")
    needs_runs = options.fusion in (fused_runs.CONCAT, CALIBRATED)
    if needs_runs or config.weights == fused_runs.AUTO:
        members = [fused_runs.Member.of(source) for source in sources]
        with ProgressShown(options.quiet) as progress:
            found = fused_runs.fuse_runs(members, config, progress)
        ranking = found.ranking if options.depth is None else found.ranking.head(options.depth)
        record = found.record(config)
        lines = [*(found.weights_choice.lines() if found.weights_choice else []),
                 *(found.refinement_choice.lines() if found.refinement_choice else [])]  # fmt: skip
    else:
        assert not isinstance(config.weights, str)
        ranking = fused(
            [read_ranking(source) for source in sources],
            method=options.fusion, weights=config.weights, depth=options.depth,
        )  # fmt: skip
        record = {key: ranking.origin["fusion"][key] for key in ("method", "weights")}
        lines = []
    ranking.save(options.out)
    about = {"ranking": str(options.out), "queries": len(ranking), "depth": ranking.depth}
    if options.as_json:
        print_json({**about, "fusion": record})
    else:
        typer.echo("\n".join([*lines, *([""] if lines else [])]), nl=bool(lines))
        kept = ", ".join(f"{weight:.3g}" for weight in record["weights"])
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {options.out}")
        typer.echo(f"fused by {options.fusion}, weights {kept}")
