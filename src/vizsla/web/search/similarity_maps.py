"""Where a query and a result are alike → two JPEGs, one pair after the other, beside searches.

For a network without a map of places that takes seconds, so it has a thread of its own that gives
way to all others. Equal requests share one drawing; what nobody waits for any longer is not begun.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vizsla.model.explain import Explanation
from vizsla.output.similarity_sheet import overlaid
from vizsla.web.search.decoder import Busy, Closed, fail, succeed

WAITING = 6  # pairs behind the one that is drawn
KEPT = 200  # pairs, of some 100 kB
BUSY_SECONDS = 10  # after which one may ask again
SIDE = 448  # px

Key = tuple[str, str]  # of the query and the result: what names each one's pixels
Drawn = tuple[bytes, bytes]


@dataclass(eq=False)
class Job:
    """One pair on its way. askers: who waits for it."""

    key: Key
    future: "Future[Drawn]" = field(default_factory=Future)
    askers: int = 0
    begun: bool = False


class Whys:
    """`ask(key, work)` → Job, whose future is `work()`; whoever has asked calls `leave` at last."""

    def __init__(self, pool: Executor, *, waiting: int = WAITING, kept: int = KEPT) -> None:
        """pool: has one thread. kept: drawn pairs that are remembered."""
        self.waiting, self.kept = waiting, kept
        self._pool = pool
        self._jobs: dict[Key, Job] = {}
        self._drawn: OrderedDict[Key, Drawn] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, key: Key, work: Callable[[], Drawn]) -> Job:
        """Raises Busy where too many others wait, Closed after `close`."""
        with self._lock:
            if self._closed:
                raise Closed
            if key in self._drawn:
                self._drawn.move_to_end(key)
                job = Job(key)
                job.future.set_result(self._drawn[key])
                return job
            job = self._jobs.get(key) or self._new(key, work)
            job.askers += 1
            return job

    def leave(self, job: Job) -> None:
        """Whoever asked has it, or waits no longer."""
        with self._lock:
            job.askers -= 1
            unwanted = job.askers <= 0 and not job.begun and self._jobs.get(job.key) is job
            if unwanted:
                del self._jobs[job.key]
        if unwanted:
            job.future.cancel()

    def close(self) -> None:
        """Whoever waits gets Closed at once."""
        with self._lock:
            self._closed = True
            jobs, self._jobs = list(self._jobs.values()), {}
        self._pool.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            fail(job.future, Closed())

    def _new(self, key: Key, work: Callable[[], Drawn]) -> Job:
        if len(self._jobs) > self.waiting:
            raise Busy(
                "too many heat maps wait to be drawn: try again in a moment", seconds=BUSY_SECONDS
            )
        job = self._jobs[key] = Job(key)
        self._pool.submit(self._do, job, work)
        return job

    def _do(self, job: Job, work: Callable[[], Drawn]) -> None:
        with self._lock:
            if job.future.done():  # nobody waits any longer
                return
            job.begun = True
        try:
            drawn = work()
        except BaseException as error:
            self._end(job, None)
            fail(job.future, error)
        else:
            self._end(job, drawn)
            succeed(job.future, drawn)

    def _end(self, job: Job, drawn: Drawn | None) -> None:
        with self._lock:
            self._jobs.pop(job.key, None)
            if drawn is not None:
                self._drawn[job.key] = drawn
                while len(self._drawn) > self.kept:
                    self._drawn.popitem(last=False)


def glowing(query: np.ndarray, result: np.ndarray, found: Explanation) -> Drawn:
    """Both pictures, (H, W, 3) uint8, under one scale, so that the two can be compared."""
    densities = [heat * heat.size for heat in (found.query, found.result)]
    highest = max(float(heat.max()) for heat in densities)
    drawn = [
        _glowing(pixels, heat, highest)
        for pixels, heat in zip((query, result), densities, strict=True)
    ]
    return drawn[0], drawn[1]


def _glowing(pixels: np.ndarray, heat: np.ndarray, highest: float) -> bytes:
    picture = Image.fromarray(pixels)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = io.BytesIO()
    overlaid(picture.resize(size), heat, highest).save(file, "JPEG", quality=90)
    return file.getvalue()
