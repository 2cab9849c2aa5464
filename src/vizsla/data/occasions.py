"""Times and places of images → which were taken together: one moment, one session, one place.

Knows the columns of exif.py, no files. The times are those of the cameras' clocks.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np

MOMENT = timedelta(seconds=10)
SESSION_GAP = timedelta(minutes=30)  # without an image: a new session begins
PLACE_RADIUS = 100.0  # m between an image and the nearest other one of the place
EARTH_RADIUS = 6_371_000.0  # m


def same_moment(
    taken: Sequence[datetime | None],
    cameras: Sequence[str | None],
    parts: Sequence[str],
    within: timedelta = MOMENT,
) -> list[tuple[int, int, float]]:
    """(a, b, seconds), a < b: shots of one camera in two different parts, close in time.

    Of each image only the nearest in time of each other part. Without a camera or a time there
    is none.
    """
    known = [
        (camera, time, i)
        for i, (time, camera) in enumerate(zip(taken, cameras, strict=True))
        if time is not None and camera is not None
    ]
    nearest: dict[tuple[int, str], tuple[timedelta, int]] = {}
    last: dict[str, tuple[str, datetime, int]] = {}  # part → its latest shot
    ordered = sorted(known)
    for forwards in (True, False):
        last.clear()
        for camera, time, i in ordered if forwards else reversed(ordered):
            for part, (other_camera, other_time, j) in last.items():
                apart = abs(time - other_time)
                if part != parts[i] and camera == other_camera and apart <= within:
                    nearest[i, part] = min(nearest.get((i, part), (apart, j)), (apart, j))
            last[parts[i]] = (camera, time, i)
    pairs = {(min(i, j), max(i, j)): apart for (i, _), (apart, j) in nearest.items()}
    return [(a, b, apart.total_seconds()) for (a, b), apart in sorted(pairs.items())]


def sessions(taken: Sequence[datetime | None], gap: timedelta = SESSION_GAP) -> np.ndarray:
    """(N,) int64: the number of each image's session, -1 without a time.

    A session ends where no image was taken for longer than `gap`, by any camera.
    """
    numbers = np.full(len(taken), -1)
    known = sorted((time, i) for i, time in enumerate(taken) if time is not None)
    number, before = -1, None
    for time, i in known:
        number += before is None or time - before > gap
        numbers[i], before = number, time
    return numbers


def places(
    latitudes: Sequence[float | None], longitudes: Sequence[float | None],
    radius: float = PLACE_RADIUS,
) -> np.ndarray:  # fmt: skip
    """(N,) int64: the number of each image's place, -1 without coordinates.

    Images within `radius` metres of each other, or of one in between, are of one place.
    """
    from sklearn.cluster import DBSCAN  # a third of a second to import

    degrees = np.array([latitudes, longitudes], float).T  # (N, 2), nan where unknown
    known = np.isfinite(degrees).all(axis=1)
    numbers = np.full(len(degrees), -1)
    if known.any():
        joined = DBSCAN(eps=radius / EARTH_RADIUS, min_samples=1, metric="haversine")
        numbers[known] = joined.fit_predict(np.radians(degrees[known]))
    return numbers
