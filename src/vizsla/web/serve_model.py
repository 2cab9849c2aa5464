"""Pixels and words → unit vectors, those of one moment together. Knows no requests and no gallery.

One thread works for all requests: what arrives within a few milliseconds goes through the network
in one batch, which costs little more than one picture alone.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np
import torch

from vizsla.model.compute import Compute
from vizsla.model.embedder import Embedder
from vizsla.model.explain import Explanation, explain_seen
from vizsla.model.network import Network

log = logging.getLogger("vizsla.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

WAIT = 0.003  # s that the first request waits for others
MOST = 16  # in one batch


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
        self._thread = threading.Thread(target=self._run, name="serve-batch", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        future: Future[Result] = Future()
        self._waiting.put((item, future))
        return future

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(30)

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                return
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
            if ended:
                return

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
        self._explaining = threading.Lock()

    def image(self, pixels: np.ndarray) -> "Future[np.ndarray]":
        """(D,) float32 of length 1, from (H, W, 3) as `Framing.pixels` gives them."""
        return self._batcher.submit(pixels)

    def text(self, words: str) -> "Future[np.ndarray]":
        return self._batcher.submit(words)

    def warm_up(self) -> None:
        """One picture, and words where it reads them: the first requests take longest."""
        height, width = self.framing.size
        for _ in range(2):
            self.image(np.zeros((height, width, 3), np.uint8)).result()
        if self.reads_text:
            self.text("a dog").result()

    def explain(self, query: np.ndarray, result: np.ndarray) -> Explanation:
        """Where two pictures, (H, W, 3) as for `image`, are alike; one pair at a time."""
        both = torch.from_numpy(np.stack([query, result]))
        seen = self.embedder.preprocess.normalised(both)  # (2, 3, H, W)
        with self._explaining:
            return explain_seen(self.embedder, seen[0], seen[1:])[0]

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
