"""What runs have left on the disk: runs, runs clean."""

from dataclasses import dataclass

import typer

from vizsla.cli.console import Commands, print_json, print_table
from vizsla.option_fields import option, same
from vizsla.options import Printing, RunOptions

app = Commands()
runs_commands = Commands(help="List runs with their size and scores.")
app.add_typer(runs_commands, name="runs")


@dataclass(frozen=True, kw_only=True)
class RunsOptions(Printing):
    """The options of `vizsla runs`."""

    home: str = same(RunOptions, "home", help="The folder that holds runs/.")
    metric: str | None = option(
        None, "What decides the order: mAP, top-1, points, precision@5, …", "Scores", shown="mAP",
        usual=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CleanOptions(RunsOptions):
    """The options of `vizsla runs clean`."""

    keep: str = option(
        "best", "The runs of each data set to keep: best, or so many of the best.", "Data",
        usual=True,
    )  # fmt: skip
    yes: bool = option(False, "Remove without asking.", "Data", "-y", "--yes", usual=True)


@runs_commands.callback(invoke_without_command=True, epilog="Example: vizsla runs --metric top-1")
def runs(context: typer.Context, *, options: RunsOptions) -> None:
    """List runs with their size and scores, the best first; `runs clean` removes some."""
    if context.invoked_subcommand is not None:
        return
    from vizsla.run.run_folders import format_size, run_folders
    from vizsla.score.run_table import WHOLE
    from vizsla.score.text_table import WIDTH
    from vizsla.score.validation_scores import HEADING

    found = run_folders(options.home, options.metric)
    if options.as_json:
        print_json(found.table().records())
        return
    table = found.table()
    if found.ranked is not None and found.ranked.is_validated_only:
        typer.echo(HEADING)
    print_table(table, table.columns, whole=WHOLE, piped=WIDTH)
    typer.echo(f"{len(found.folders)} runs, {format_size(found.size)}")


@runs_commands.command(epilog="Example: vizsla runs clean --keep best")
def clean(*, options: CleanOptions) -> None:
    """Remove the folders of all runs but the best of each data set, after a question.

    Results, submissions and sheets stay, and so do unfinished runs and the members of fused ones.
    """
    from vizsla.run.run_folders import format_size, remove_runs, run_folders

    found = run_folders(options.home, options.metric)
    removable = found.superfluous(options.keep)
    size = format_size(sum(folder.size for folder in removable))
    if removable and not options.yes:
        for folder in removable:
            typer.echo(f"{format_size(folder.size):>6}  {folder.run.folder}", err=True)
        typer.confirm(f"Remove these {len(removable)} runs ({size})?", abort=True, err=True)
    remove_runs(removable)
    if options.as_json:
        print_json({"removed": [folder.run.id for folder in removable]})
    else:
        left = len(found.folders) - len(removable)
        typer.echo(f"removed {len(removable)} runs ({size}), kept {left}")
