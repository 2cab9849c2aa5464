"""An image of any mode → upright RGB. Knows Pillow's modes, nothing of files."""

import logging
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

log = logging.getLogger("vizsla.images")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation → the transposition that makes it upright
SIDEWAYS = tuple(TURNS[i] for i in (5, 6, 7, 8))  # they swap width and height


def upright_transpose(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes it upright, by its EXIF block; None if none is needed."""
    return TURNS.get(_orientation(image))


def transposed_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: Image.Transpose | None
) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) of an image of this size after its transposition."""
    left, top, right, bottom = box
    wide, high = size
    mirrored, flipped = (wide - right, wide - left), (high - bottom, high - top)
    turns = Image.Transpose
    across = mirrored if turn in (
        turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.ROTATE_90, turns.TRANSVERSE
    ) else (left, right)  # fmt: skip
    down = flipped if turn in (
        turns.FLIP_TOP_BOTTOM, turns.ROTATE_180, turns.ROTATE_270, turns.TRANSVERSE
    ) else (top, bottom)  # fmt: skip
    if turn in SIDEWAYS:
        across, down = down, across
    return across[0], down[0], across[1], down[1]


def to_upright_rgb(image: Image.Image, rawmode: str) -> Image.Image:
    """Upright RGB from an image whose pixels are loaded. rawmode: see `rawmode_of`."""
    turn = upright_transpose(image)
    rgb = _to_rgb(image, rawmode)
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = image.copy()  # a plain Image, no longer tied to its file
    rgb.info = {}  # or a later save would turn it again, and carry profiles along
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
        return int(value)
    except Exception as error:  # EXIF is a file format of its own, and often broken
        log.debug("EXIF cannot be read (%s): the image is not turned", error)
        return 1


def _to_rgb(image: Image.Image, rawmode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_grey16(image)
    if image.mode in ("I", "F"):
        numbers = np.asarray(image)
        black, white = (0, 65535) if image.format == "PPM" and image.mode == "I" else _span(numbers)
        return _to_grey8(numbers, black, white).convert("RGB")
    if image.has_transparency_data:
        _scale_transparent_colour(image, rawmode)
        rgba = image.convert("RGBA")
        white_page = Image.new("RGB", image.size, "white")
        white_page.paste(rgba, mask=rgba.getchannel("A"))
        return white_page
    return image if image.mode == "RGB" else image.convert("RGB")


def rawmode_of(image: Any) -> str:
    """How the file stores its pixels, such as `L;2` or `RGB;16B`; known until they are loaded."""
    args = image.tile[0][3] if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _scale_transparent_colour(image: Image.Image, rawmode: str) -> None:
    """A PNG gives its transparent colour in its own bit depth; Pillow compares it in 8 bits."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return
    if isinstance(colour, tuple):
        shift = 8 if "16" in rawmode else 0
        image.info["transparency"] = tuple(value >> shift & 255 for value in colour)
    elif isinstance(colour, int):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}.get(rawmode, 1) & 255


def _from_grey16(image: Image.Image) -> Image.Image:
    numbers = np.asarray(image)
    black, white = 0, 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (16,))[0]
        white = 2**bits - 1
        if image.tag_v2.get(262) == 0:  # white is zero
            black, white = white, black
    grey = _to_grey8(numbers, black, white)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(255, mask=Image.fromarray(numbers == clear))
    return grey.convert("RGB")


def _span(numbers: np.ndarray) -> tuple[float, float]:
    """The values of black and white, guessed from the range of the numbers."""
    finite = numbers[np.isfinite(numbers)] if numbers.dtype.kind == "f" else numbers
    if finite.size == 0:
        return 0, 1
    lowest, highest = float(finite.min()), float(finite.max())
    for white in (1, 255, 65535) if numbers.dtype.kind == "f" else (255, 65535):
        if lowest >= 0 and highest <= white:
            return 0, white
    return lowest, highest if highest > lowest else lowest + 1


def _to_grey8(numbers: np.ndarray, black: float, white: float) -> Image.Image:
    """Mode L; black may be above white. In strips, to save memory."""
    grey = np.empty(numbers.shape, np.uint8)
    rows = max(1, 2**20 // max(1, numbers.shape[1]))
    for start in range(0, len(numbers), rows):
        part = numbers[start : start + rows].astype(np.float64)
        part = np.nan_to_num((part - black) / (white - black), nan=0, posinf=1, neginf=0)
        grey[start : start + rows] = np.clip(part * 255 + 0.5, 0, 255)
    return Image.fromarray(grey)
