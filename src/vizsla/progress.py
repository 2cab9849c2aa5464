"""Reports of how far a stage is → a bar on a terminal or in a notebook, or lines elsewhere."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vizsla.workspace import SECONDS

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
Report = Callable[[str, int, int], None]  # (stage, done, total)
LOADING = "loading"  # libraries, a model or a gallery


@dataclass
class Stage:
    """One stage under way.

    first: the count at its first report, when its clock starts; earlier work is not in the rate.
    left: the lowest estimate of the seconds that are left.
    """

    name: str
    total: int
    first: int
    started: float
    done: int = -1
    left: float = math.inf

    def seconds_left(self, now: float) -> str:
        """An estimate, as text, that only falls; empty where there is none yet."""
        rate = 1.0 if self.name.endswith(SECONDS) else self.rate(now)
        if not rate or self.done >= self.total:
            return ""
        self.left = min(self.left, (self.total - self.done) / rate)
        return f"{self.left:.0f} s left"

    def is_continued_by(self, name: str, done: int, total: int) -> bool:
        """Whether a report is of this stage, and not of a later one of the same name."""
        return (name, total) == (self.name, self.total) and done >= self.done

    def rate(self, now: float) -> float | None:
        """None where there is none yet; seconds and what is one thing have none."""
        seconds = now - self.started
        if self.name.endswith(SECONDS) or self.total == 1:
            return None
        return (self.done - self.first) / seconds if seconds > 0.5 else None


class ProgressShown:
    """Called with (stage, done, total): bars on a terminal and in a notebook, else lines."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.display: Any = None  # in a notebook: what shows the bar there
        self.stage = Stage("", 0, 0, 0.0)
        self.named: set[str] = set()  # the stages that one line has named
        self.last = 0.0

    def __enter__(self) -> "ProgressShown":
        notebook = in_notebook()
        if not self.quiet and (notebook or sys.stderr.isatty()):
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("{task.description:<18}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
            )
            if notebook:  # Rich's own way of being shown there needs ipywidgets
                from IPython.display import display

                self.display = display(self.bar, display_id=True)
            else:
                self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.display:
            self.display.update(self.bar)
        elif self.bar:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now, new = time.monotonic(), not self.stage.is_continued_by(stage, done, total)
        if new:
            self.stage = Stage(stage, total, done, now)
        elif done == self.stage.done:
            return
        self.stage.done = done
        rate = self.stage.rate(now)
        rate_text = format_rate(rate) if rate else ""
        if self.bar:
            self._move_bar(stage, done, total, rate_text, self.stage.seconds_left(now), new=new)
            if self.display and (now - self.last > 0.2 or done == total):
                self.last = now
                self.display.update(self.bar)
        elif total == 1:
            if done == 0 and not self.quiet and stage not in self.named:
                print(f"{stage} …", file=sys.stderr, flush=True)
                self.named.add(stage)
        elif not self.quiet and (now - self.last > 10 or done == total):
            self.last = now
            left = self.stage.seconds_left(now) if rate else ""
            wait = left and f", {left}"
            what, unit = stage.removesuffix(SECONDS), " s" if stage.endswith(SECONDS) else ""
            line = f"{what}: {done} of {total}{unit}{rate_text and ' at ' + rate_text}{wait}"
            print(line, file=sys.stderr, flush=True)

    def _move_bar(
        self, stage: str, done: int, total: int, rate: str, left: str, *, new: bool
    ) -> None:
        assert self.bar is not None
        if stage not in self.tasks:
            shown = None if (done, total) == (0, 1) else total  # without a number the bar moves
            self.tasks[stage] = self.bar.add_task(stage, total=shown, rate="", left="")
        elif new:  # the same words for another stage: its clock starts anew
            self.bar.reset(self.tasks[stage], total=total)
        self.bar.update(
            self.tasks[stage], completed=done, total=total if done else None, rate=rate, left=left
        )


@contextlib.contextmanager
def waiting(progress: Report | None, stage: str) -> Iterator[None]:
    """Context: reports a stage that cannot be counted, such as loading a model, as under way."""
    if progress:
        progress(stage, 0, 1)
    yield
    if progress:
        progress(stage, 1, 1)


def reported(items: Sequence[T], stage: str, progress: Report | None) -> Iterator[T]:
    """The items, one by one; reports each when it is done."""
    for i, item in enumerate(items):
        yield item
        if progress:
            progress(stage, i + 1, len(items))


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextlib.contextmanager
def reporting(progress: Report | bool | None) -> Iterator[Report | None]:
    """What takes reports: `progress` itself if it can be called, bars for True.

    None: bars in a notebook, and nothing elsewhere. False: nothing anywhere.
    """
    if callable(progress):
        yield progress
    elif in_notebook() if progress is None else progress:
        with ProgressShown() as shown:
            yield shown
    else:
        yield None if progress is None else _silent


def _silent(stage: str, done: int, total: int) -> None:
    """Reports nothing, and neither do the stages that it is handed to."""


def format_rate(rate: float) -> str:
    """A rate per second as text: 30/s, below ten with one decimal: 1.2/s."""
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"
