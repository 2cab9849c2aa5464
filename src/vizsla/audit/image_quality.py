"""An image → how blurred and how dark it is, as numbers that can be compared between photos."""

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 256  # px: larger images are reduced until their shorter side has as many
FINE, COARSE = 0.7, 2.0  # px: widths of the two Gaussians whose gradients are compared
EDGES = 0.04  # share of the pixels, those with the strongest gradients, that are measured
SHARPEST = 75  # percentile of the measured edges: a blurred background is no fault
MOST_BLUR = 8.0  # px: wider edges cannot be told apart


def blur_of(grey: Image.Image) -> float:
    """The width of the sharpest strong edges: deviation in px of the Gaussian that blurred a step.

    grey: mode L, measured at up to SIDE px. Blurring a step of width s by a Gaussian of width g
    leaves a gradient in proportion to 1 / √(s² + g²), so the ratio of the gradients at two widths
    gives s, whatever the contrast (Zhuo and Sim 2011).
    """
    pixels = np.asarray(_reduced(grey), np.float32)
    fine = ndimage.gaussian_gradient_magnitude(pixels, FINE)
    coarse = ndimage.gaussian_gradient_magnitude(pixels, COARSE)
    strong = coarse >= np.quantile(coarse, 1 - EDGES)
    ratio = np.percentile((fine[strong] + 1e-3) / (coarse[strong] + 1e-3), SHARPEST) ** 2
    if ratio <= 1:
        return MOST_BLUR
    squared = (COARSE**2 - ratio * FINE**2) / (ratio - 1)
    return float(np.sqrt(np.clip(squared, 0, MOST_BLUR**2)))


def brightness_of(grey: Image.Image) -> float:
    """The brightest parts of the image, from 0 to 1: the 90th percentile of its pixels.

    A dark background alone does not make a photo dark.
    """
    return float(np.percentile(np.asarray(grey), 90) / 255)


def _reduced(grey: Image.Image) -> Image.Image:
    shorter = min(grey.size)
    if shorter <= SIDE:
        return grey
    width, height = (max(1, round(side * SIDE / shorter)) for side in grey.size)
    return grey.resize((width, height), Image.Resampling.BOX)
