"""A better model's vectors of the training images, which the term `teacher` of a loss learns from.

Only similarities inside a batch are compared, so teacher and student may have any dimensions, and
the teacher may be anything that has vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.train.batch_gradient import Processes

Report = Callable[[int, int], None]  # (images done, images in total)


@dataclass(frozen=True, eq=False)
class Teacher:
    """Where the vectors to learn from come from.

    embed: (images, report) → their embeddings, which may lack broken ones.
    """

    name: str
    model_id: str
    embed: Callable[[ImageSet, Report], Embeddings]

    def require_other(self, model_id: str) -> None:
        """UsageError if the teacher is the model that is to be trained."""
        if self.model_id == model_id:
            raise UsageError(
                f"--teacher {self.name} is the model that is trained: give a better one, or leave "
                "it out"
            )

    def vectors(self, images: ImageSet, processes: Processes, report: Report) -> np.ndarray:
        """(N, D) unit vectors, less their mean direction. DataError if the teacher lacks an image.

        Cosines of many networks are all high; without the mean they differ by what is in the image.
        """
        if processes.rank > 0:
            processes.wait()  # until the first one has written them
        found = self.embed(images, report)
        if processes.rank == 0:
            processes.wait()
        lacking = sorted(set(images.ids) - set(found.ids))
        if lacking:
            raise DataError(
                f"--teacher {self.name} lacks {len(lacking)} of {len(images)} training images "
                f"(first: {lacking[0]}): embed the folder of training images whole, or name the "
                "model"
            )
        vectors = F.normalize(torch.from_numpy(found.of_images(images.ids).vectors).float(), dim=1)
        centred: np.ndarray = F.normalize(vectors - vectors.mean(dim=0), dim=1).numpy()
        return centred
