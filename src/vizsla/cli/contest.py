"""The commands of a contest: `submit`, and `judge`, its server."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, Group, print_json
from vizsla.cli.sources import names_in
from vizsla.errors import UsageError
from vizsla.option_fields import REQUIRED, Options, option, same
from vizsla.options import ImageOptions, Messages, Printing, RunOptions

app = Commands()


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(Printing):
    """The options of `vizsla submit`."""

    group: str = option(REQUIRED, "The group's name.", "Contest", usual=True)
    url: str | None = option(
        None, "The server's URL.", "Contest", shown="$VIZSLA_SUBMIT_URL", usual=True
    )
    data: Path | None = option(
        None, "Check the names against this data folder first.", "Data", usual=True
    )
    token: str | None = option(
        None, "The group's token, if the server asks for one.", "Contest",
        envvar="VIZSLA_SUBMIT_TOKEN",
    )  # fmt: skip
    timeout: float = option(30.0, "Seconds to wait for the answer.", "Contest", minimum=0.1)
    dry_run: bool = option(
        False, "Check the submission and send nothing; needs no URL.", "Contest", usual=True
    )


@app.command(epilog="Example: vizsla submit submissions/sub_resnet50_….json --group us --url URL")
def submit(
    file: Annotated[Path, typer.Argument(help="A submission file, or a run's folder.")],
    *,
    options: SubmitOptions,
) -> None:
    """Post a submission to the contest's server; print the score, the rank and what is left."""
    from vizsla.output.submit_client import record_submission, score_lines, submit
    from vizsla.workspace import run_of_submission, submission_in

    file = submission_in(file) if file.is_dir() or not file.suffix else file
    queries, gallery = names_in(options.data)
    receipt = submit(
        file, options.group, options.url, token=options.token, timeout=options.timeout,
        dry_run=options.dry_run, queries=queries, gallery=gallery,
    )  # fmt: skip
    run_folder = None if options.dry_run else run_of_submission(file)
    record = run_folder and record_submission(run_folder, receipt)
    if options.as_json:
        print_json(dataclasses.asdict(receipt))
    else:
        if receipt.accuracy is None:
            typer.echo(f"would send {receipt.queries} queries, {receipt.bytes} bytes")
        else:
            typer.echo("\n".join(score_lines(receipt)))
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


@dataclass(frozen=True, kw_only=True)
class Contest(Options):
    """Which contest."""

    database: Path = option(Path("judge.sqlite"), "The contest's file.", "Contest", usual=True)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Contest, Messages):
    """The options of `vizsla judge`."""

    labels: Path | None = same(ImageOptions, "labels", shown=None)
    data: Path | None = option(
        None, "Check the labels against this data folder.", "Data", usual=True
    )
    top_k: int = same(RunOptions, "top_k", help="Images per query in a submission.")
    metrics: str = option(
        "top_k_accuracy",
        "What ranks, then what is shown too: top_k_accuracy, contest_points, map_at_k, or by name, "
        "as AP@5.",
        "Contest",
    )
    title: str = option("Image retrieval contest", "The contest's title.", "Contest", usual=True)
    public_share: float | None = option(
        None, "Share of queries with live scores; needs --closes.", "Contest"
    )
    seed: int | None = option(
        None, "Determines the public queries.", "Contest", shown="random, stored"
    )
    groups: str = option(
        "open", "Who may submit. open: anyone; token: groups with a token.", "Contest",
        choices=("open", "token"),
    )  # fmt: skip
    per_hour: int | None = option(None, "Submissions per group and hour.", "Contest", minimum=1)
    max_submissions: int | None = option(
        None, "Submissions per group in total.", "Contest", minimum=1
    )
    opens: str | None = option(
        None, "Opening time: 2026-05-28T12:00 (local) or …Z (UTC).", "Contest"
    )
    closes: str | None = option(None, "Closing time, in the same format.", "Contest", shown="never")
    counts: str = option(
        "best", "Which submission of a group: best or last.", "Contest", choices=("best", "last")
    )
    host: str = option("127.0.0.1", "0.0.0.0 accepts other machines.", "Server", usual=True)
    port: int = option(3001, "0: any free port.", "Server", minimum=0, maximum=65535, usual=True)
    organiser_token: str | None = option(
        None, "The token for /organiser.", "Server", shown="created once",
        envvar="VIZSLA_ORGANISER_TOKEN",
    )  # fmt: skip


@judge_commands.callback(
    invoke_without_command=True,
    epilog="Example: vizsla judge --labels labels.csv --top-k 10 --port 3001",
)
def judge(context: typer.Context, *, options: JudgeOptions) -> None:
    """Accept submissions at /retrieval/ and show the leaderboard, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from vizsla.score.metrics.metric_names import split_names
    from vizsla.web.contest import server as judging
    from vizsla.web.contest.rules import Rules, parse_time

    if options.labels is None:
        raise UsageError("--labels FILE is missing: it is the truth to score with")
    rules = Rules(
        title=options.title, top_k=options.top_k, metrics=tuple(split_names(options.metrics)),
        public_share=options.public_share, seed=options.seed, groups=options.groups,
        per_hour=options.per_hour, max_submissions=options.max_submissions, counts=options.counts,
        opens=parse_time(options.opens) if options.opens else None,
        closes=parse_time(options.closes) if options.closes else None,
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
        options.labels, database=options.database, data=options.data, rules=rules,
        host=options.host, port=options.port, organiser_token=options.organiser_token,
        started=started,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RescoreOptions(Contest, Printing):
    """The options of `vizsla judge rescore`; what is not given stays as it was."""

    labels: Path = option(REQUIRED, "The truth to score with.", "Data", usual=True)
    data: Path | None = same(JudgeOptions, "data")
    top_k: int | None = same(JudgeOptions, "top_k", None, shown="as before")
    metrics: str | None = same(JudgeOptions, "metrics", None, shown="as before")
    public_share: float | None = same(
        JudgeOptions, "public_share", help="Share of queries with live scores.", shown="as before"
    )
    seed: int | None = same(JudgeOptions, "seed", shown="as before")


@judge_commands.command(epilog="Example: vizsla judge rescore --labels corrected.csv")
def rescore(*, options: RescoreOptions) -> None:
    """Score every stored submission again, after correcting a label. Stop the server first."""
    from vizsla.score.metrics.metric_names import split_names
    from vizsla.web.contest import server as judging

    done = judging.rescore(
        options.labels, database=options.database, data=options.data, top_k=options.top_k,
        metrics=options.metrics and split_names(options.metrics), seed=options.seed,
        public_share=options.public_share,
    )  # fmt: skip
    if options.as_json:
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
    *,
    options: Contest,
) -> None:
    """Create a token for a group and print it; an older one is no longer valid."""
    from vizsla.web.contest.server import add_token

    typer.echo(add_token(name, database=options.database))


@token_commands.command("list")
def token_list(*, options: Contest) -> None:
    """List the groups that have a token."""
    from vizsla.web.contest.server import list_tokens

    typer.echo("\n".join(list_tokens(database=options.database)))


@token_commands.command("remove")
def token_remove(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    *,
    options: Contest,
) -> None:
    """Remove a group's token; its submissions stay."""
    from vizsla.web.contest.server import remove_token

    remove_token(name, database=options.database)
