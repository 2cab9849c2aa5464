"""Pixels and texts → unit vectors, in batches. Knows no requests and no gallery.

One thread serves all requests: what arrives within a few milliseconds goes through the network in
one batch, which costs little more than a single image.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from cachetools import LRUCache

from vizsla.embed.compute import PRECISIONS, Compute, RuntimeFailed
from vizsla.embed.runtime import Runtime
from vizsla.embed.torch_runtime import one_core_threads
from vizsla.model.embedder import Embedder
from vizsla.model.explain import Explanation, explain_tensors
from vizsla.web.search.decoder import Closed, fail

log = logging.getLogger("vizsla.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_WAIT = 0.003  # s that the first item waits for others
MAX_BATCH = 16
MAX_TEXTS = 1000  # whose vectors are remembered
EXPLAIN_SECONDS = 5.0  # that the heat maps of two images may take
IDLE_SECONDS = 0.03  # without a search before each pass for a heat map
MAX_IDLE_WAIT = 0.25  # s; then a pass runs although there are searches


class Batcher(Generic[Item, Result]):
    """`submit(item)` → Future of its result; `work` gets the items of one batch, in order."""

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch: int = MAX_BATCH,
        wait: float = BATCH_WAIT,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """wait: seconds that a batch waits for more items. on_batch: gets the size of each."""
        self.work, self.max_batch, self.wait, self.on_batch = work, max_batch, wait, on_batch
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.is_closed = self._is_working = False
        self._ended = 0.0  # when the latest batch ended, by time.monotonic
        self._thread = threading.Thread(target=self._run, name="serve-batch", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        """Raises Closed after `close`."""
        return self.submit_all([item])[0]

    def submit_all(self, items: Sequence[Item]) -> "list[Future[Result]]":
        """At once, so that they share a batch if one is large enough."""
        pairs: list[tuple[Item, Future[Result]]] = [(item, Future()) for item in items]
        with self._lock:
            if self.is_closed:
                raise Closed
            for pair in pairs:
                self._waiting.put(pair)
        return [future for _, future in pairs]

    def is_idle(self, seconds: float) -> bool:
        """Whether there has been nothing to do for so long."""
        idle = not self._is_working and self._waiting.empty()
        return idle and time.monotonic() - self._ended >= seconds

    def close(self) -> None:
        """Items that wait get Closed; the current batch is completed."""
        with self._lock:
            self.is_closed = True
            self._waiting.put(None)  # the last item
        self._thread.join(30)

    def _run(self) -> None:
        is_open = True
        while is_open:
            first = self._waiting.get()
            self._is_working = True
            is_open = first is not None and self._batch_from(first)
            self._is_working, self._ended = False, time.monotonic()

    def _batch_from(self, first: "tuple[Item, Future[Result]]") -> bool:
        """Answers `first` and what arrives while it waits; False after the last item."""
        if self.is_closed:
            fail(first[1], Closed())
            return True
        batch = [first]
        until = time.monotonic() + self.wait
        ended = False
        while len(batch) < self.max_batch and not ended:
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
        if self.on_batch is not None:
            self.on_batch(len(batch))
        try:
            results = self.work([item for item, _ in batch])
        except BaseException as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for item, future in batch:  # one bad item must not fail the others
                try:
                    future.set_result(self.work([item])[0])
                except BaseException as item_error:
                    future.set_exception(item_error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


class Model:
    """An embedder that serves many requests at once."""

    def __init__(
        self,
        embedder: Embedder,
        compute: Compute,
        *,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """on_batch: called with the size of each batch."""
        self.embedder, self.network = embedder, Runtime(embedder, compute)
        self.framing = embedder.preprocess.framing
        self.dim, self.model_id, self.name = embedder.dim, embedder.model_id, embedder.name
        self.reads_text = embedder.reads_text
        self._batcher: Batcher[np.ndarray | str, np.ndarray] = Batcher(
            self._work, on_batch=on_batch
        )

    def image(self, pixels: np.ndarray) -> "Future[np.ndarray]":
        """(D,) float32 of length 1, from (H, W, 3) as `Framing.pixels` gives them."""
        return self._batcher.submit(pixels)

    def images(self, pixels: Sequence[np.ndarray]) -> "list[Future[np.ndarray]]":
        """The same for several, in one batch if they fit."""
        return self._batcher.submit_all(pixels)

    def text(self, words: str) -> "Future[np.ndarray]":
        """(D,) float32 of length 1."""
        return self._batcher.submit(words)

    def texts(self, words: Sequence[str]) -> "list[Future[np.ndarray]]":
        """The same for several, in one batch if they fit."""
        return self._batcher.submit_all(words)

    def searched(self, vector: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """The vector to search with: this one. See `JointModel.searched`."""
        return vector

    def warm_up(self) -> None:
        """Embeds an image and, if the model reads text, a text: the first ones take longest."""
        height, width = self.framing.size
        blank = np.zeros((height, width, 3), np.uint8)
        for _ in range(2):
            try:
                self.image(blank).result()
            except RuntimeFailed as error:
                self.network.use_torch(error)
        for one in self.images([blank] * min(MAX_BATCH, torch.get_num_threads())):
            one.result()  # in parts, for which some runtimes prepare the network again
        if self.reads_text:
            self.text("a dog").result()

    def shown(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) of what `explain` explains: the pixels."""
        return pixels

    def explain(self, query: np.ndarray, result: np.ndarray) -> Explanation:
        """Where two images, (H, W, 3) as for `image`, are similar. Takes seconds of one core.

        Runs in a thread of `background_thread`, while searches continue.
        """
        both = torch.from_numpy(np.stack([query, result]))
        seen = self.embedder.preprocess.normalised(both)  # (2, 3, H, W)
        precision = PRECISIONS[self.network.compute.precision]
        return explain_tensors(
            self.embedder,
            seen[0],
            seen[1:],
            seconds=EXPLAIN_SECONDS,
            precision=precision,
            before_pass=self._wait_until_idle,
        )[0]

    def _wait_until_idle(self) -> None:
        """Waits for a pause in the searches, which a pass would slow down; not forever.

        Raises Closed after `close`: then nobody waits for the drawing.
        """
        until = time.monotonic() + MAX_IDLE_WAIT
        while not self._batcher.is_idle(IDLE_SECONDS) and time.monotonic() < until:
            time.sleep(IDLE_SECONDS / 4)
        if self._batcher.is_closed:
            raise Closed

    @staticmethod
    def background_thread() -> ThreadPoolExecutor:
        """One thread, with one core and low priority."""
        return one_core_threads(1, "serve-maps", low_priority=True)

    def close(self) -> None:
        """Texts and images that wait get Closed."""
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


class Ready(Protocol):
    """A vector that may still be being computed."""

    def result(self) -> np.ndarray:
        """(D,) float32 of length 1."""


class ReadsTexts(Protocol):
    """What TextCache needs of a model."""

    def texts(self, words: Sequence[str]) -> Sequence[Ready]:
        """A vector for each text."""


class TextCache:
    """Remembers the vectors of the latest texts: people search for the same words again."""

    def __init__(self, model: ReadsTexts, *, max_texts: int = MAX_TEXTS) -> None:
        self.model = model
        self._vectors: LRUCache[str, np.ndarray] = LRUCache(max_texts)
        self._lock = threading.Lock()

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(D,) float32 each; those that are not remembered go through the model together."""
        with self._lock:
            found = {words: self._vectors[words] for words in texts if words in self._vectors}
        missing = [words for words in dict.fromkeys(texts) if words not in found]
        for words, vector in zip(missing, self.model.texts(missing), strict=True):
            found[words] = vector.result()
        with self._lock:
            self._vectors.update(found)
        return [found[words] for words in texts]
