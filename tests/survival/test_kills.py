"""`kill -9` at any moment, then the same command again: the artefacts of an unbroken run.

VIZSLA_KILLS sets the number of random moments in the slow tests (100), VIZSLA_KILLS_SEED which.
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from .conftest import KILLED, Commands, Job, leftovers, my_part

KILLS = int(os.environ.get("VIZSLA_KILLS", "100"))
SEED = int(os.environ.get("VIZSLA_KILLS_SEED", "0"))
JOBS = ["embed", "index", "train"]
QUICK = ["embed", "index", pytest.param("train", marks=pytest.mark.slow)]  # train takes seconds


def whole_run(job: Job, commands: Commands, out: Path) -> tuple[dict[str, str], float, int, int]:
    """Hashes, seconds, units of work and steps of writing of an unbroken run."""
    answer = job.run(commands, out)
    assert answer.code == 0, answer.output
    assert answer.steps is not None
    hashes = job.hashes(out)
    assert hashes
    return hashes, answer.seconds, len(answer.noted(job.begun or "")), answer.steps


def finish(job: Job, commands: Commands, out: Path, killed: list[str]) -> int:
    """Runs the command to its end; how many units of work were done more than once."""
    answer = job.run(commands, out)
    assert answer.code == 0, answer.output
    assert leftovers(out) == []
    begun = Counter(killed + answer.noted(job.begun or ""))
    return sum(begun.values()) - len(begun)


@pytest.mark.parametrize("name", QUICK)
def test_killed_at_some_steps_of_writing(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    """The short version."""
    _killed_at_steps(jobs[name], commands, tmp_path, most=2)


@pytest.mark.parametrize("name", QUICK)
def test_ctrl_c_says_so_and_the_same_command_finishes(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    job, out = jobs[name], tmp_path / "out"
    hashes, _, _, steps = whole_run(job, commands, tmp_path / "whole")
    answer = job.run(commands, out, at=steps // 2, act="interrupt")
    assert answer.code == 130, answer.output
    assert "vizsla: interrupted; nothing is half-written" in answer.output
    assert "Traceback" not in answer.output and leftovers(out) == []
    again = job.run(commands, out)
    assert again.code == 0 and job.hashes(out) == hashes
    done_before = set(answer.noted(job.begun or ""))
    assert not done_before or set(again.noted(job.begun or "")) - done_before


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_each_step_of_writing(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    _killed_at_steps(jobs[name], commands, tmp_path, most=10**6)


def _killed_at_steps(job: Job, commands: Commands, tmp_path: Path, most: int) -> None:
    hashes, _, units, steps = whole_run(job, commands, tmp_path / "whole")
    chosen = my_part(range(1, steps + 1, max(1, steps // most)))
    redone: Counter[int] = Counter()
    for at in chosen:
        out = tmp_path / f"at-{at}"
        answer = job.run(commands, out, at=at, act="kill")
        assert answer.code == KILLED, (at, answer.output)
        again = finish(job, commands, out, answer.noted(job.begun or ""))
        redone[again] += 1
        assert again <= job.redone, (at, answer.notes)
        assert job.hashes(out) == hashes, at
        shutil.rmtree(out)
    print(
        f"\n{job.name}: killed at {len(chosen)} of {steps} steps of writing ({units} units of "
        f"work): all end with the hashes of an unbroken run; done twice: {dict(redone)}"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_moments(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    job = jobs[name]
    hashes, seconds, units, _ = whole_run(job, commands, tmp_path / "whole")
    rng, redone, killed = random.Random(SEED), Counter[int](), 0
    for n in range(KILLS):
        out = tmp_path / str(n)
        answer = job.run(commands, out, kill_after=rng.uniform(0, seconds))
        killed += answer.code == KILLED
        assert answer.code in (0, KILLED), answer.output
        again = finish(job, commands, out, answer.noted(job.begun or ""))
        redone[again] += 1
        assert again <= job.redone, (n, answer.notes)
        assert job.hashes(out) == hashes, n
        shutil.rmtree(out, ignore_errors=True)
    print(
        f"\n{job.name}: {KILLS} random moments in {seconds:.2f} s, {killed} of them before its end "
        f"({units} units of work): all end with the hashes of an unbroken run; done twice: "
        f"{dict(sorted(redone.items()))}"
    )
    assert killed > KILLS / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_again_and_again_it_still_gets_on(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    """Each attempt dies after some steps more than the last; none is lost on the way."""
    job = jobs[name]
    hashes, _, _, steps = whole_run(job, commands, tmp_path / "whole")
    out = tmp_path / "out"
    for attempt in range(6):
        at = 2 + attempt if name == "embed" else steps // 6 + attempt
        if job.run(commands, out, at=at, act="kill").code != KILLED:
            break
    assert job.run(commands, out).code == 0
    assert job.hashes(out) == hashes
