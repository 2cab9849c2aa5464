"""A transform of torchvision or timm, or an image size → Preprocess. Imports neither library.

Only what Preprocess can describe: one resize, one centre crop, one normalisation. Decoding is done
by threads and child processes, which cannot run a function of the caller.
"""

from collections.abc import Sequence
from typing import Any

from vizsla.data.preprocess import Preprocess
from vizsla.errors import UsageError

TO_TENSOR = ("ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ToDtype", "ConvertImageDtype",
             "ToPureTensor", "Identity")  # fmt: skip
EXPECTED = (
    "expected a Preprocess, an image size such as 224, or a transform of torchvision or timm that "
    "consists of Resize, CenterCrop, ToTensor and Normalize"
)


def preprocess_of(given: Any) -> Preprocess:
    """The Preprocess that does the same. UsageError: there is none.

    An int: the shorter side is brought to that size, and the centre square cut out.
    """
    if isinstance(given, Preprocess):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return Preprocess((given, given))
    if hasattr(given, "crop_size") and hasattr(given, "resize_size"):  # weights.transforms()
        size = _pair(given.crop_size)
        return _made(given, given.resize_size, size, given.mean, given.std)
    steps = getattr(given, "transforms", None)
    if not isinstance(steps, Sequence):
        raise UsageError(f"preprocess is of type {type(given).__name__}: {EXPECTED}")
    by_name: dict[str, Any] = {}
    for step in steps:
        name = type(step).__name__
        if name in TO_TENSOR:
            continue
        if name not in ("Resize", "CenterCrop", "Normalize") or name in by_name:
            again = " a second time" if name in by_name else ""
            raise UsageError(f"preprocess contains {name}{again}: {EXPECTED}")
        by_name[name] = step
    resize, crop = by_name.get("Resize"), by_name.get("CenterCrop")
    if resize is None or getattr(resize, "max_size", None) is not None:
        raise UsageError(f"preprocess contains no Resize to a fixed size: {EXPECTED}")
    normalize = by_name.get("Normalize")
    mean, std = ((0, 0, 0), (1, 1, 1)) if normalize is None else (normalize.mean, normalize.std)
    if crop is None and _sides(resize.size) == 1:
        raise UsageError(
            f"preprocess gives images of different sizes: add CenterCrop after Resize; {EXPECTED}"
        )
    return _made(resize, resize.size, _pair((crop or resize).size), mean, std)


def _made(resize: Any, sides: Any, size: tuple[int, int], mean: Any, std: Any) -> Preprocess:
    """sides: of the resize, one for the shorter side or both. size: (H, W) of the crop."""
    interpolation = getattr(resize.interpolation, "value", resize.interpolation)
    colours = (tuple(round(float(v), 6) for v in values) for values in (mean, std))  # from float32
    if _sides(sides) == 1:
        shorter = _pair(sides)[0]
        return Preprocess(size, None if shorter == max(size) else shorter, "crop", interpolation,
                          *colours)  # fmt: skip
    both = _pair(sides)
    if both != size and both[0] != both[1]:
        raise UsageError(f"preprocess resizes to {both} and cuts {size} out: {EXPECTED}")
    return Preprocess(size, None if both == size else both[0], "squash", interpolation, *colours)


def _sides(size: Any) -> int:
    return len(size) if isinstance(size, Sequence) else 1


def _pair(size: Any) -> tuple[int, int]:
    both = list(size) if isinstance(size, Sequence) else [size]
    return int(both[0]), int(both[-1])
