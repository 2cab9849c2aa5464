"""Where a server stands on its way to readiness. Knows numbers and words alone."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vizsla.web.search.prometheus import Metrics

if TYPE_CHECKING:
    from vizsla.web.search.engine import Engine

STAGES = {
    "loading": "loading the model",
    "embedding": "looking at the pictures",
    "indexing": "building the index",
    "warming": "warming up",
    "failed": "the server could not start",
}


@dataclass
class Serving:
    """engine: None until everything is warm. done, total: images, while stage is `embedding`."""

    stage: str = "loading"
    done: int = 0
    total: int = 0
    error: str | None = None
    engine: "Engine | None" = None
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def text(self) -> str:
        """What a client is told meanwhile."""
        if self.stage == "embedding" and self.total:
            return f"not ready: {self.done} of {self.total} pictures are looked at"
        return f"not ready: {STAGES.get(self.stage, self.stage)}"
