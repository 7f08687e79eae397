"""The demo's data: patches of photographs and digits as unit vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A patch whose pixels deviate from their mean by less than one grey level has no direction but noise.
_FLAT = 1 / 255


class Size(NamedTuple):
    """A patch size, and how many patches of it are drawn."""

    height: int
    width: int
    count: int
    components: int

    @property
    def dim(self) -> int:
        return 3 * self.height * self.width


#: the first is small enough for SciPy
SIZES = (
    Size(4, 4, 6000, 16),
    Size(8, 8, 6000, 16),
    Size(16, 16, 4000, 16),
    Size(32, 32, 2000, 16),
    Size(104, 105, 400, 8),
)


def photographs() -> dict[str, np.ndarray]:
    """scikit-learn's two photographs, (427, 640, 3) in [0, 1]."""
    from sklearn.datasets import load_sample_image

    return {name: load_sample_image(f"{name}.jpg").astype(np.float32) / 255 for name in ("china", "flower")}


def directions(patches: np.ndarray) -> np.ndarray:
    """Patches (n, height, width, 3) as unit vectors (n, d): mean removed, divided by the length; flat ones left out."""
    rows = patches.reshape(len(patches), -1)
    rows = rows - rows.mean(1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    kept = length[:, 0] > _FLAT * rows.shape[1] ** 0.5
    return (rows[kept] / length[kept]).astype(np.float32)


def patches(photo: np.ndarray, size: Size, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` patches at random places, (count, height, width, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, (size.height, size.width), axis=(0, 1))
    at = random.integers(0, windows.shape[0], count), random.integers(0, windows.shape[1], count)
    return np.moveaxis(windows[at], 1, -1)


def halves(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right half: one to fit, the other, which shares no pixel with it, to test."""
    middle = photo.shape[1] // 2
    return photo[:, :middle], photo[:, middle:]


def digits(size: Size, count: int, random: np.random.Generator) -> np.ndarray:
    """scikit-learn's 8 x 8 digits, pixels repeated (or left out) to fill the patch, grey in all three channels."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32) / 16
    picked = images[random.choice(len(images), min(count, len(images)), replace=False)]
    rows = np.arange(size.height) * 8 // size.height
    columns = np.arange(size.width) * 8 // size.width
    return np.repeat(picked[:, rows][:, :, columns, None], 3, axis=-1)


def every_patch(photo: np.ndarray, size: Size, stride: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Patches on a grid as unit vectors (flat ones as zero rows), and the grid's shape."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, (size.height, size.width), axis=(0, 1))
    grid = windows[::stride, ::stride]
    rows = np.moveaxis(grid, 2, -1).reshape(-1, size.dim)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(length > _FLAT * size.dim**0.5, rows / np.maximum(length, 1e-12), 0.0)
    return rows.astype(np.float32), grid.shape[:2]
