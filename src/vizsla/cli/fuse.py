"""The command that fuses several rankings into one: fuse."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.sources import read_ranking
from vizsla.errors import UsageError
from vizsla.option_fields import REQUIRED, option, same
from vizsla.options import Accepting, FusionOptions, Printing, RankingOptions
from vizsla.progress import ProgressShown

app = Commands()


@dataclass(frozen=True, kw_only=True)
class FuseOptions(FusionOptions, RankingOptions, Accepting, Printing):
    """The options of `vizsla fuse`."""

    accept: float | str | None = same(
        Accepting, "accept",
        help="Accept only matches that are right with this probability, such as 0.95, learned on "
        "the runs' training images; or a calibration: FILE, FILE@0.9.",
        usual=False,
    )  # fmt: skip
    write_calibration: Path | None = option(
        None, "Write what --accept has learned, for --accept FILE.", "Output"
    )

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

    --fusion concat, calibrated and auto, and --fusion-weights auto need runs with training images;
    so does --accept with a number.
    """
    from vizsla.run import fused_runs
    from vizsla.run.accepting import Accept
    from vizsla.run.members import Member
    from vizsla.search.fusion import fused
    from vizsla.workspace import is_run

    if len(sources) < 2:
        raise UsageError("give two runs or rankings, or more")
    if options.write_calibration and options.accept is None:
        raise UsageError("--write-calibration is an option of --accept: give it too")
    config = fused_runs.FusionConfig(
        options.fusion, options.fusion_weights, options.fusion_whiten,
        options.refine, options.refine_uses,
    )  # fmt: skip
    config.check(len(sources))
    if options.fusion != fused_runs.CONCAT and options.refine != "none":
        raise UsageError("--refine only works with --fusion concat here: refine each run instead")
    by_number = options.accept is not None and Accept.parse(options.accept).file is None
    lines: list[str] = []
    with ProgressShown(options.quiet) as progress:
        members = []
        if by_number or config.needs_training or (options.accept and all(map(is_run, sources))):
            members = [Member.of(source) for source in sources]
            own = [member.config for member in members]
            fused_runs.require_decidable(options.accept, own)
            found = fused_runs.fuse_runs(members, config, progress)
            ranking = found.ranking
            record = found.record()
            for choice in (found.fusion_choice, found.refinement_choice):
                lines += [*choice.lines(), ""] if choice else []
        else:
            assert not isinstance(config.weights, str)
            ranking = fused(
                [read_ranking(source) for source in sources],
                method=options.fusion, weights=config.weights,
            )  # fmt: skip
            record = {key: ranking.origin["fusion"][key] for key in ("method", "weights")}
        calibration = None
        if options.accept is not None and members:
            ranking = fused_runs.with_joint_evidence(
                ranking, members, found.fusion, found.vectors(members)
            )
            calibration = fused_runs.joint_calibration(
                members, found.fusion, options.accept, ranking, progress
            )
        elif options.accept is not None:
            calibration = Accept.parse(options.accept).load()
    about: dict[str, Any] = {}
    if calibration is not None:
        ranking = calibration.decide(ranking)
        lines += [*calibration.lines(), ""]
        about["accept"] = calibration.to_dict()
        if options.write_calibration:
            calibration.save(options.write_calibration)
    ranking = ranking if options.depth is None else ranking.head(options.depth)
    ranking.save(options.out)
    about |= {"ranking": str(options.out), "queries": len(ranking), "depth": ranking.depth}
    if options.as_json:
        print_json({**about, "fusion": record})
        return
    kept = ", ".join(f"{weight:.3g}" for weight in record["weights"])
    lines.append(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {options.out}")
    lines.append(f"fused by {record['method']}, weights {kept}")
    typer.echo("\n".join(lines))
