"""EXIF of an image → when, where and with which camera it was taken.

Cameras write local time without a zone, so times of one camera can be compared. What is missing,
damaged or impossible is None.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

if TYPE_CHECKING:
    import pyarrow as pa

TIMES = {
    ExifTags.Base.DateTimeOriginal: ExifTags.Base.SubsecTimeOriginal,
    ExifTags.Base.DateTimeDigitized: ExifTags.Base.SubsecTimeDigitized,
    ExifTags.Base.DateTime: ExifTags.Base.SubsecTime,
}  # the tag of a time → that of its fraction of a second
COLUMNS = ("taken", "camera", "latitude", "longitude")


@dataclass(frozen=True)
class Exif:
    """taken: local time. camera: make and model. place: (latitude, longitude) in degrees."""

    taken: datetime | None = None
    camera: str | None = None
    place: tuple[float, float] | None = None


def exif_of(image: Any) -> Exif:
    """The EXIF of an image that Pillow or pillow_heif has opened, but need not have decoded."""
    try:
        if isinstance(image, Image.Image):
            return parsed_exif(image.getexif())
        tags = Image.Exif()
        tags.load(image.info.get("exif") or b"")
        return parsed_exif(tags)
    except Exception:  # a broken block can make the parser raise anything at all
        return Exif()


def parsed_exif(tags: Image.Exif) -> Exif:
    """What Pillow's table of tags says."""
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    named = {**tags, **inner}
    times = (_time(named.get(tag), named.get(subsec)) for tag, subsec in TIMES.items())
    taken = next((time for time in times if time), None)
    make, model = (_text(named.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    starts = make and model and model.casefold().startswith(make.split()[0].casefold())
    camera = model if starts else " ".join(filter(None, (make, model)))
    return Exif(taken, camera or None, _place(tags.get_ifd(ExifTags.IFD.GPSInfo)))


def exif_table(found: Iterable[Exif]) -> "pa.Table":
    """COLUMNS, a row for each image: a time, a text and two numbers, or null."""
    rows = list(found)
    places = [exif.place or (None, None) for exif in rows]
    columns: list[Sequence[Any]] = [
        [exif.taken for exif in rows], [exif.camera for exif in rows],
        [place[0] for place in places], [place[1] for place in places],
    ]  # fmt: skip
    import pyarrow as pa  # child processes that only decode do without

    types = (pa.timestamp("us"), pa.string(), pa.float64(), pa.float64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(dict(zip(COLUMNS, arrays, strict=True)))


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    words = "".join(c if c.isprintable() else " " for c in value.partition("\0")[0]).split()
    return " ".join(words) or None


def _time(value: Any, fraction: Any) -> datetime | None:
    """A time such as 2024:05:01 12:30:00; some programs write the day with - or /."""
    text = (_text(value) or "")[:19]
    try:
        time = datetime.strptime(re.sub("[-/]", ":", text), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = _text(fraction) or ""
    known = digits.isascii() and digits.isdecimal()
    return time + timedelta(microseconds=int(digits[:6].ljust(6, "0"))) if known else time


def _place(gps: dict[int, Any]) -> tuple[float, float] | None:
    try:
        latitude = _degrees(gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLatitudeRef], "S")
        longitude = _degrees(gps[ExifTags.GPS.GPSLongitude], gps[ExifTags.GPS.GPSLongitudeRef], "W")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    possible = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0, 0)
    return (latitude, longitude) if possible else None


def _degrees(value: Sequence[Any], side: Any, negative: str) -> float:
    degrees, minutes, seconds = (float(part) for part in value)
    found = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(found):
        raise ValueError(found)
    return -found if (_text(side) or "").upper() == negative else found
