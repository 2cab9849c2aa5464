"""The commands of a contest: `submit`, and `judge`, its server."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, Group, print_json
from vizsla.cli.shared_options import AsJson, Labels, Quiet, TopK, Verbose
from vizsla.cli.sources import names_in
from vizsla.errors import UsageError

app = Commands()


@app.command(epilog="Example: vizsla submit submissions/sub_resnet50_….json --group us --url URL")
def submit(
    file: Annotated[Path, typer.Argument(help="A submission file, or a run's folder.")],
    group: Annotated[str, typer.Option("--group", help="The group's name.")],
    url: Annotated[
        str | None,
        typer.Option("--url", help="The server's URL.", show_default="$VIZSLA_SUBMIT_URL"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the names against this data folder first.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="VIZSLA_SUBMIT_TOKEN",
            help="The group's token, if the server asks for one.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the submission and send nothing; needs no URL.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Post a submission to the contest's server and print the score."""
    from vizsla.output.submit_client import record_submission, submit
    from vizsla.workspace import run_of_submission, submission_in

    file = submission_in(file) if file.is_dir() or not file.suffix else file
    queries, gallery = names_in(data)
    receipt = submit(
        file, group, url, token=token, timeout=timeout, dry_run=dry_run,
        queries=queries, gallery=gallery,
    )  # fmt: skip
    run_folder = None if dry_run else run_of_submission(file)
    record = run_folder and record_submission(run_folder, receipt)
    if as_json:
        print_json(dataclasses.asdict(receipt))
    else:
        if receipt.accuracy is None:
            typer.echo(f"would send {receipt.queries} queries, {receipt.bytes} bytes")
        else:
            numbers = {"accuracy": receipt.accuracy, **receipt.metrics}
            typer.echo("\n".join(f"{name:<20} {value:g}" for name, value in numbers.items()))
        typer.echo(f"{'to':<20} {receipt.url or '(no --url given)'}, as group {receipt.groupname}")
        typer.echo(f"{'sha256':<20} {receipt.sha256}")
        if record:
            typer.echo(f"{'recorded':<20} {record}")


judge_commands = Commands(
    cls=Group,
    help="Run a contest: a server that scores submissions and shows a leaderboard.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
token_commands = Commands(cls=Group, help="Manage the tokens of groups.", no_args_is_help=True)
judge_commands.add_typer(token_commands, name="token")
app.add_typer(judge_commands, name="judge")

Database = Annotated[Path, typer.Option("--database", help="The contest's file.")]
Share = Annotated[
    float | None,
    typer.Option("--public-share", help="Share of queries with live scores; needs --closes."),
]


@judge_commands.callback(
    invoke_without_command=True,
    epilog="Example: vizsla judge --labels labels.csv --top-k 10 --port 3001",
)
def judge(
    context: typer.Context,
    labels: Labels = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the labels against this data folder.")
    ] = None,
    top_k: TopK = 10,
    metric: Annotated[
        str, typer.Option("--metric", help="top_k_accuracy, contest_points or map_at_k.")
    ] = "top_k_accuracy",
    title: Annotated[
        str, typer.Option("--title", help="The contest's title.")
    ] = "Image retrieval contest",
    public_share: Share = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Determines the public queries.", show_default="random, stored"
        ),
    ] = None,
    groups: Annotated[
        str,
        typer.Option("--groups", help="Who may submit. open: anyone; token: groups with a token."),
    ] = "open",
    per_hour: Annotated[
        int | None, typer.Option("--per-hour", min=1, help="Submissions per group and hour.")
    ] = None,
    in_all: Annotated[
        int | None, typer.Option("--in-all", min=1, help="Submissions per group in total.")
    ] = None,
    opens: Annotated[
        str | None,
        typer.Option("--opens", help="Opening time: 2026-05-28T12:00 (local) or …Z (UTC)."),
    ] = None,
    closes: Annotated[
        str | None,
        typer.Option("--closes", help="Closing time, in the same format.", show_default="never"),
    ] = None,
    counts: Annotated[
        str, typer.Option("--counts", help="Which submission of a group: best or last.")
    ] = "best",
    database: Database = Path("judge.sqlite"),
    host: Annotated[
        str, typer.Option("--host", help="0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 3001,
    organiser_token: Annotated[
        str | None,
        typer.Option(
            "--organiser-token",
            help="The token for /organiser.",
            envvar="VIZSLA_ORGANISER_TOKEN",
            show_default="created once",
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Accept submissions at /retrieval/ and show the leaderboard, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from vizsla.web.contest import server as judging
    from vizsla.web.contest.rules import Rules, parse_time

    if labels is None:
        raise UsageError("--labels FILE is missing: it is the truth to score with")
    rules = Rules(
        title=title, top_k=top_k, metric=metric, public_share=public_share, seed=seed,
        groups=groups, per_hour=per_hour, in_all=in_all, counts=counts,
        opens=parse_time(opens) if opens else None,
        closes=parse_time(closes) if closes else None,
    )  # fmt: skip

    def started(url: str, new_token: str | None) -> None:
        typer.echo(f"submissions  {url}/retrieval/")
        typer.echo(f"leaderboard  {url}/")
        typer.echo(f"organiser    {url}/organiser")
        if new_token:
            typer.echo(
                f"             token {new_token} (printed once; the password for any user name)"
            )

    judging.judge(
        labels, database=database, data=data, rules=rules, host=host, port=port,
        organiser_token=organiser_token, started=started,
    )  # fmt: skip


@judge_commands.command(epilog="Example: vizsla judge rescore --labels corrected.csv")
def rescore(
    labels: Annotated[Path, typer.Option("--labels", help="The truth to score with.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the labels against this folder.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("-k", "--top-k", min=1, help="Images per query.", show_default="as before"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="The metric of accuracy.", show_default="as before"),
    ] = None,
    public_share: Annotated[
        float | None,
        typer.Option(
            "--public-share", help="Share of queries with live scores.", show_default="as before"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Determines the public queries.", show_default="as before"),
    ] = None,
    database: Database = Path("judge.sqlite"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score every stored submission again, after correcting a label. Stop the server first."""
    from vizsla.web.contest import server as judging

    done = judging.rescore(
        labels, database=database, data=data, top_k=top_k, metric=metric,
        public_share=public_share, seed=seed,
    )  # fmt: skip
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        typer.echo(f"rescored: {done.submissions}, changed: {done.changed}")
        if done.misfits:
            typer.echo(
                f"with queries or images that the labels lack: {done.misfits} "
                "(are these the right labels?)"
            )


@token_commands.command("add", epilog="Example: vizsla judge token add 'Team 7'")
def token_add(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    database: Database = Path("judge.sqlite"),
) -> None:
    """Create a token for a group and print it; an older one is no longer valid."""
    from vizsla.web.contest.server import add_token

    typer.echo(add_token(name, database=database))


@token_commands.command("list")
def token_list(database: Database = Path("judge.sqlite")) -> None:
    """List the groups that have a token."""
    from vizsla.web.contest.server import list_tokens

    typer.echo("\n".join(list_tokens(database=database)))


@token_commands.command("remove")
def token_remove(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    database: Database = Path("judge.sqlite"),
) -> None:
    """Remove a group's token; its submissions stay."""
    from vizsla.web.contest.server import remove_token

    remove_token(name, database=database)
