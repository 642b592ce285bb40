"""What images are like in three figures, to tell those that are unlike the ones a network was trained on."""

from __future__ import annotations

import numpy as np

FIGURES = ("brightness", "contrast", "colour")
_MOST = 1000  # images of a split that are measured


def measure(image: np.ndarray) -> dict[str, float]:
    """Brightness, contrast and colour of one image (H, W) or (H, W, 3) uint8, on the scale 0 to 1.

    They are mean and standard deviation of the grey values, and by how much the channels of a pixel differ
    on average: 0 for grey.
    """
    pixels = image.astype(np.float32) / 255
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    colour = 0.0 if pixels.ndim == 2 else float(np.ptp(pixels, axis=2).mean())
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "colour": colour,
    }


def ranges(images: np.ndarray) -> dict[str, tuple[float, float]]:
    """Lowest and highest of each figure over images (N, H, W[, 3]); of many over 1,000 spread evenly."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(np.int64))
    found = [measure(images[index]) for index in chosen]
    return {
        name: (min(one[name] for one in found), max(one[name] for one in found)) for name in FIGURES
    }
