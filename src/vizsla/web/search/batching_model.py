"""Pixels and words → unit vectors, those of one moment together. Knows no requests and no gallery.

One thread works for all requests: what arrives within a few milliseconds goes through the network
in one batch, which costs little more than one picture alone.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch

from vizsla.embed.compute import PRECISIONS, Compute
from vizsla.embed.torch_runtime import Network, one_core_threads
from vizsla.model.embedder import Embedder
from vizsla.model.explain import Explanation, explain_seen
from vizsla.web.search.decoder import Closed, fail

log = logging.getLogger("vizsla.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

WAIT = 0.003  # s that the first request waits for others
MOST = 16  # in one batch
TEXTS_KEPT = 1000
WHY_SECONDS = 5.0  # that the heat maps of two pictures may take
QUIET, PATIENCE = 0.03, 0.25  # s without a search before each of their passes, or so long a wait


class Batcher(Generic[Item, Result]):
    """`submit(item)` → Future; `work` gets the items of one moment, in the order they came in."""

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        *,
        most: int = MOST,
        wait: float = WAIT,
        seen: Callable[[int], None] | None = None,
    ) -> None:
        """seen: told the size of every batch."""
        self.work, self.most, self.wait, self.seen = work, most, wait, seen
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.is_closed = self._working = False
        self._ended = 0.0  # of the latest batch, as time.monotonic has it
        self._thread = threading.Thread(target=self._run, name="serve-batch", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        """Raises Closed after `close`."""
        return self.submit_all([item])[0]

    def submit_all(self, items: Sequence[Item]) -> "list[Future[Result]]":
        """In one moment, so that no batch ends between them but where it is full."""
        pairs: list[tuple[Item, Future[Result]]] = [(item, Future()) for item in items]
        with self._lock:
            if self.is_closed:
                raise Closed
            for pair in pairs:
                self._waiting.put(pair)
        return [future for _, future in pairs]

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing waits or is worked on, and was not for so long."""
        idle = not self._working and self._waiting.empty()
        return idle and time.monotonic() - self._ended >= seconds

    def close(self) -> None:
        """What waits gets Closed; a batch under way ends as it would have."""
        with self._lock:
            self.is_closed = True
            self._waiting.put(None)  # nothing comes behind it
        self._thread.join(30)

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            first = self._waiting.get()
            self._working = True
            goes_on = first is not None and self._batch_from(first)
            self._working, self._ended = False, time.monotonic()

    def _batch_from(self, first: "tuple[Item, Future[Result]]") -> bool:
        """Answers it, together with what comes in a moment; False where nothing will come."""
        if self.is_closed:
            fail(first[1], Closed())
            return True
        batch = [first]
        until = time.monotonic() + self.wait
        ended = False
        while len(batch) < self.most and not ended:
            try:
                more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            ended = more is None
            if more is not None:
                batch.append(more)
        self._answer(batch)
        return not ended

    def _answer(self, batch: "list[tuple[Item, Future[Result]]]") -> None:
        batch = [pair for pair in batch if pair[1].set_running_or_notify_cancel()]
        if not batch:
            return
        if self.seen is not None:
            self.seen(len(batch))
        try:
            results = self.work([item for item, _ in batch])
        except BaseException as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for item, future in batch:  # one of them must not spoil the others' answers
                try:
                    future.set_result(self.work([item])[0])
                except BaseException as own:
                    future.set_exception(own)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


class Model:
    """An embedder that answers many requests at once."""

    def __init__(
        self,
        embedder: Embedder,
        compute: Compute,
        *,
        seen: Callable[[int], None] | None = None,
    ) -> None:
        self.embedder, self.network = embedder, Network(embedder, compute)
        self.framing = embedder.preprocess.framing
        self.dim, self.model_id, self.name = embedder.dim, embedder.model_id, embedder.name
        self.reads_text = embedder.reads_text
        self._batcher: Batcher[np.ndarray | str, np.ndarray] = Batcher(self._work, seen=seen)

    def image(self, pixels: np.ndarray) -> "Future[np.ndarray]":
        """(D,) float32 of length 1, from (H, W, 3) as `Framing.pixels` gives them."""
        return self._batcher.submit(pixels)

    def images(self, pixels: Sequence[np.ndarray]) -> "list[Future[np.ndarray]]":
        """The same for several, which go through the network together."""
        return self._batcher.submit_all(pixels)

    def text(self, words: str) -> "Future[np.ndarray]":
        return self._batcher.submit(words)

    def texts(self, words: Sequence[str]) -> "list[Future[np.ndarray]]":
        return self._batcher.submit_all(words)

    def warm_up(self) -> None:
        """One picture, and words where it reads them: the first requests take longest."""
        height, width = self.framing.size
        for _ in range(2):
            self.image(np.zeros((height, width, 3), np.uint8)).result()
        if self.reads_text:
            self.text("a dog").result()

    def explain(self, query: np.ndarray, result: np.ndarray) -> Explanation:
        """Where two pictures, (H, W, 3) as for `image`, are alike: takes seconds of one core.

        For a thread of `aside`, beside which searches go on.
        """
        both = torch.from_numpy(np.stack([query, result]))
        seen = self.embedder.preprocess.normalised(both)  # (2, 3, H, W)
        precision = PRECISIONS[self.network.compute.precision]
        return explain_seen(
            self.embedder,
            seen[0],
            seen[1:],
            seconds=WHY_SECONDS,
            precision=precision,
            give_way=self._wait_for_a_quiet_moment,
        )[0]

    def _wait_for_a_quiet_moment(self) -> None:
        """A search that meets a pass takes longer; where they never end, a pass comes between.

        Raises Closed after `close`: nobody waits for the rest.
        """
        until = time.monotonic() + PATIENCE
        while not self._batcher.is_quiet(QUIET) and time.monotonic() < until:
            time.sleep(QUIET / 4)
        if self._batcher.is_closed:
            raise Closed

    @staticmethod
    def aside() -> ThreadPoolExecutor:
        """One thread, which has one core and gives way to all others."""
        return one_core_threads(1, "serve-why", gives_way=True)

    def close(self) -> None:
        self._batcher.close()

    def _work(self, items: list[np.ndarray | str]) -> list[np.ndarray]:
        images = [i for i, item in enumerate(items) if not isinstance(item, str)]
        texts = [i for i, item in enumerate(items) if isinstance(item, str)]
        vectors = np.zeros((len(items), self.dim), np.float32)
        if images:
            pixels = np.stack([np.asarray(items[i]) for i in images])  # (B, H, W, 3)
            vectors[images] = self.network.submit(torch.from_numpy(pixels)).result()
        if texts:
            with torch.inference_mode():
                found = self.embedder.encode_text([str(items[i]) for i in texts])
            vectors[texts] = found.float().cpu().numpy()
        return list(vectors)


class Texts:
    """Remembers the vectors of the latest texts: people ask for the same words again."""

    def __init__(self, model: Model, *, most: int = TEXTS_KEPT) -> None:
        self.model, self.most = model, most
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(D,) each; those that are not known go through the model together."""
        with self._lock:
            found = {words: self._kept[words] for words in texts if words in self._kept}
        missing = [words for words in dict.fromkeys(texts) if words not in found]
        for words, vector in zip(missing, self.model.texts(missing), strict=True):
            found[words] = vector.result()
        with self._lock:
            for words, one in found.items():
                self._kept[words] = one
                self._kept.move_to_end(words)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return [found[words] for words in texts]
