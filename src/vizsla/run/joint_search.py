"""A run of several models, searched: all of them embed the queries, as they did its gallery."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vizsla.embed.embeddings import Embeddings
from vizsla.embed.projected import projected
from vizsla.model.projection import AnyProjection, load_projection
from vizsla.run.fused_runs import CONCAT, FusionConfig, members_of, weights_of
from vizsla.run.members import Member
from vizsla.search.fusion import SPREADS, joined, searched_as_fused
from vizsla.workspace import PROJECTION

log = logging.getLogger("vizsla.search")


@dataclass(frozen=True, eq=False)
class JointSearch:
    """members: the runs that were fused, and how. projection: of their concatenated vectors, if
    there is one."""

    members: Sequence[Member]
    fusion: FusionConfig
    projection: AnyProjection | None = None

    @staticmethod
    def of(run: str | Path) -> "JointSearch | None":
        """Of the run in this folder; None if it is one of a single model."""
        members, fusion = members_of(run)
        if not members:
            return None
        has_head = fusion.method == CONCAT and fusion.whiten != "none"
        return JointSearch(
            members, fusion, load_projection(Path(run) / PROJECTION) if has_head else None
        )

    @property
    def weights(self) -> list[float]:
        """Of the models, which add up to 1."""
        return weights_of(self.fusion, len(self.members))

    @property
    def origin(self) -> dict[str, str]:
        """What a ranking by such a search adds to its origin: what its scores are."""
        return {} if self.fusion.method == CONCAT else {"searched_as": self.fusion.method}

    def log_how(self) -> None:
        """Says what results are ordered by, and warns where it is not as in the run."""
        method = self.fusion.method
        names = ", ".join(
            f"{member.name} {weight:.3g}"
            for member, weight in zip(self.members, self.weights, strict=True)
        )
        if method in SPREADS:
            log.info("searched by several models, fused by %s as the run was: %s", method, names)
        elif method == CONCAT:
            log.info("searched by the concatenated vectors of several models: %s", names)
        else:
            log.warning(
                "the run was fused by %s, and searches go by the weighted mean of the models' "
                "cosines: their order may differ from the run's: %s", method, names,
            )  # fmt: skip
        if any(member.chain.steps for member in self.members) or self.fusion.refine != "none":
            log.warning("the run's ranking is also refined, which searches are not")

    def queries(self, embed: Callable[[Member], Embeddings], gallery: Embeddings) -> Embeddings:
        """Queries as they are compared with the run's gallery. embed: gives their vectors by the
        model of one member."""
        parts = [embed(member) for member in self.members]
        found = joined(parts, self.weights)
        if self.projection is not None:
            found = projected(found, self.projection, self.fusion.whiten)
        found = dataclasses.replace(found, model_id=gallery.model_id, root=parts[0].root)
        return self.scaled(found, gallery)

    def scaled(self, queries: Embeddings, gallery: Embeddings) -> Embeddings:
        """Queries that are joined as the gallery is, as they are compared with it."""
        dims = [member.embeddings("gallery").dim for member in self.members]
        vectors = searched_as_fused(
            queries.vectors, gallery.vectors, dims, self.weights, self.fusion.method
        )
        return dataclasses.replace(queries, vectors=vectors)
