"""Heat maps of where a query and a result are similar → two JPEGs, drawn one pair after the other.

A network without a spatial feature map takes seconds for them, so they have a thread of their own
with low priority. Equal requests share one drawing; jobs without a waiting client are dropped.
"""

import io
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from cachetools import LRUCache
from PIL import Image

from vizsla.model.explain import Explanation
from vizsla.output.similarity_sheet import overlaid
from vizsla.web.search.decoder import Busy, Closed, fail, succeed

MAX_WAITING = 6  # pairs besides the one being drawn
MAX_KEPT = 200  # pairs, of about 100 kB each
RETRY_SECONDS = 10  # after which to try again if too many wait
SIDE = 448  # px

Key = tuple[str, str]  # of query and result: a name of the pixels of each
Maps = tuple[bytes, bytes]  # JPEGs of the query and of the result


@dataclass(eq=False)
class Job:
    """One pair to draw. waiting: how many requests wait for it."""

    key: Key
    future: "Future[Maps]" = field(default_factory=Future)
    waiting: int = 0
    is_started: bool = False


class MapQueue:
    """`submit(key, work)` → Job, whose future is `work()`; each caller ends with `leave(job)`."""

    def __init__(
        self, pool: Executor, *, max_waiting: int = MAX_WAITING, max_kept: int = MAX_KEPT
    ) -> None:
        """pool: of one thread. max_kept: pairs that are remembered."""
        self.max_waiting = max_waiting
        self._pool = pool
        self._jobs: dict[Key, Job] = {}
        self._drawn: LRUCache[Key, Maps] = LRUCache(max_kept)
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, key: Key, work: Callable[[], Maps]) -> Job:
        """The job of the pair. Raises Busy if too many wait, Closed after `close`."""
        with self._lock:
            if self._closed:
                raise Closed
            drawn = self._drawn.get(key)
            if drawn is not None:
                job = Job(key)
                job.future.set_result(drawn)
                return job
            job = self._jobs.get(key) or self._add_job(key, work)
            job.waiting += 1
            return job

    def leave(self, job: Job) -> None:
        """One caller waits no longer; without any the job is dropped, unless it has started."""
        with self._lock:
            job.waiting -= 1
            is_dropped = job.waiting <= 0 and not job.is_started and self._jobs.get(job.key) is job
            if is_dropped:
                del self._jobs[job.key]
        if is_dropped:
            job.future.cancel()

    def close(self) -> None:
        """All that wait get Closed at once."""
        with self._lock:
            self._closed = True
            jobs, self._jobs = list(self._jobs.values()), {}
        self._pool.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            fail(job.future, Closed())

    def _add_job(self, key: Key, work: Callable[[], Maps]) -> Job:
        if len(self._jobs) > self.max_waiting:
            raise Busy(
                "too many heat maps wait to be drawn: try again in a moment", seconds=RETRY_SECONDS
            )
        job = self._jobs[key] = Job(key)
        self._pool.submit(self._run, job, work)
        return job

    def _run(self, job: Job, work: Callable[[], Maps]) -> None:
        with self._lock:
            if job.future.done():  # dropped
                return
            job.is_started = True
        try:
            drawn = work()
        except BaseException as error:
            self._finish(job, None)
            fail(job.future, error)
        else:
            self._finish(job, drawn)
            succeed(job.future, drawn)

    def _finish(self, job: Job, drawn: Maps | None) -> None:
        with self._lock:
            self._jobs.pop(job.key, None)
            if drawn is not None:
                self._drawn[job.key] = drawn


def draw_maps(query: np.ndarray, result: np.ndarray, found: Explanation) -> Maps:
    """JPEGs of both images, (H, W, 3) uint8, with heat maps on one common scale."""
    densities = [heat * heat.size for heat in (found.query, found.result)]
    highest = max(float(heat.max()) for heat in densities)
    drawn = [
        _draw_map(pixels, heat, highest)
        for pixels, heat in zip((query, result), densities, strict=True)
    ]
    return drawn[0], drawn[1]


def _draw_map(pixels: np.ndarray, heat: np.ndarray, highest: float) -> bytes:
    picture = Image.fromarray(pixels)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = io.BytesIO()
    overlaid(picture.resize(size), heat, highest).save(file, "JPEG", quality=90)
    return file.getvalue()
