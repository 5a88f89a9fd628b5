"""Metrics: PSNR and SSIM, and the convention by which they are measured, stated as one value.

Images are tensors or arrays ``(C, H, W)`` or ``(1, C, H, W)`` with values in [0, 1]. A measurement clamps, rounds to
8 bit, takes the measured channels and leaves out the border, in that order, in float64.

PSNR = 10 log10(1 / MSE), the MSE over all measured channels. SSIM is that of the MATLAB script of Wang et al. (TIP
2004): K = (0.01, 0.03), population covariance, mean over the valid region and over the channels. Y is that of MATLAB's
rgb2ycbcr: BT.601 from 16 to 235 on the 0-255 scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from skimage.metrics import structural_similarity
from torch import Tensor

#: Y of MATLAB's rgb2ycbcr on the 0-255 scale, for R, G, B in [0, 1].
BT601, BT601_OFFSET = (65.481, 128.553, 24.966), 16.0

#: Channels that can be measured -> its name in a table, and the number of channels that an image may have.
CHANNELS = {
    "gray": ("gray", (1,)),
    "rgb": ("RGB", (3,)),
    "r": ("R", (3,)),
    "g": ("G", (3,)),
    "b": ("B", (3,)),
    "y": ("Y of BT.601 (16-235)", (1, 3)),
    "y8": ("Y of BT.601 (16-235) rounded to 8 bit", (1, 3)),
}

#: Windows of the SSIM -> their side in pixels.
WINDOWS = {"gaussian": 11, "uniform": 8}

#: The most dB that a photograph counts in means and differences: restored exactly, it has infinitely many. A mean
#: squared error of 1e-10 is less than rounding to 16 bits causes. Without it one photograph would decide every mean.
MOST_PSNR = 100.0


class ConventionError(ValueError):
    """Two images cannot be measured, or not in the way asked for."""


@dataclass(frozen=True)
class Convention:
    """How a restored image is compared with its target.

    channel: `gray` (the only channel), `rgb` (all three), `r`, `g` or `b` (one of them), `y`, or `y8`: Y as MATLAB
        gives it for an 8-bit image, rounded. A gray image is its own Y.
    border: pixels left out on each side; super-resolution leaves out as many as its scale
    quantise: round both images to 8 bit first, as if they had been saved
    clamp: clamp both images to [0, 1] first
    window: of the SSIM, `gaussian` (11 x 11, 1.5 pixels) as usual, or `uniform` (8 x 8), which gives the published
        SSIM of the JPEG images themselves (LIVE1, Classic5) and of AR-CNN in RNAN's and PANet's tables

    Raises ConventionError for a value outside these.
    """

    channel: str = "gray"
    border: int = 0
    quantise: bool = False
    clamp: bool = True
    window: str = "gaussian"

    def __post_init__(self):
        if self.channel not in CHANNELS:
            raise ConventionError(f"channel is {self.channel!r}; known: {', '.join(CHANNELS)}")
        if self.window not in WINDOWS:
            raise ConventionError(f"window is {self.window!r}; known: {', '.join(WINDOWS)}")
        if isinstance(self.border, bool) or not isinstance(self.border, int) or self.border < 0:
            raise ConventionError(f"border is {self.border!r}; it must be a whole number of pixels, 0 or more")

    def describe(self) -> str:
        """One line for the head of a table."""
        parts = [
            CHANNELS[self.channel][0],
            f"border of {self.border} px left out" if self.border else "whole image",
            "clamped" if self.clamp else "not clamped",
            "rounded to 8 bit" if self.quantise else "not rounded",
        ]
        return ", ".join(parts + (["SSIM window 8 x 8 uniform"] if self.window == "uniform" else []))

    def measure(
        self, restored: Tensor | ArrayLike, target: Tensor | ArrayLike, clamp: bool | None = None
    ) -> dict[str, float]:
        """``psnr`` in dB (inf for equal images) and ``ssim`` of `restored` against `target`.

        `clamp` overrides the convention's: the published PSNR of noisy inputs is that of unclamped ones. Raises
        ConventionError where the images are empty, differ in shape, lack the channel, hold NaN, or leave less than the
        SSIM window to measure.
        """
        restored, target = (self.planes(image, clamp) for image in (restored, target))
        return {"psnr": psnr(restored, target), "ssim": ssim(restored, target, self.window)}

    def planes(self, image: Tensor | ArrayLike, clamp: bool | None = None) -> np.ndarray:
        """The measured channels of an image: float64 ``(K, H, W)`` in [0, 1], K = 3 for `rgb`, else 1."""
        planes = _array(image)
        known = CHANNELS[self.channel][1]
        if len(planes) not in known:
            wanted = " or ".join(map(str, known))
            raise ConventionError(f"an image has {len(planes)} channels; {self.channel!r} is measured on {wanted}")
        if self.clamp if clamp is None else clamp:
            planes = planes.clip(0, 1)
        if self.quantise:
            planes = _to_8_bit(planes)
        if self.channel in ("r", "g", "b"):
            planes = planes["rgb".index(self.channel)][None]
        elif self.channel in ("y", "y8") and len(planes) == 3:
            planes = luma(planes)[None]
        if self.channel == "y8":
            planes = _to_8_bit(planes)
        inside = slice(self.border, -self.border or None)
        return planes[:, inside, inside]


@dataclass(frozen=True)
class PaperConvention:
    """How a paper arrived at its numbers: its convention and its treatment of the test images.

    noise: how the noise of the test images was drawn, the option of degradations.GaussianNoise
    stored: whether noisy images were stored in 8 bit before they were restored
    multiple: sides of the test images are cut to multiples of it, after the noise was added
    self_ensemble: mean over the eight flips and rotations
    tile: number of input pixels from which on an image is cut into quadrants, None for never
    """

    convention: Convention
    noise: str = "study"
    stored: bool = False
    multiple: int = 1
    self_ensemble: bool = False
    tile: int | None = None

    def cut(self, image: Tensor) -> Tensor:
        """``(..., H, W)`` without the rows at the bottom and the columns on the right that the paper leaves out."""
        height, width = (side // self.multiple * self.multiple for side in image.shape[-2:])
        return image[..., :height, :width]


_SR = Convention("y", quantise=True)

#: (paper, kind of task) -> its convention, from the released code; the border of "sr" is set by `published`. DAGL's
#: SSIM of colour images has a zero-padded border and is not offered; that its tables used the self-ensemble is likely
#: (all its commands do), not certain.
CONVENTIONS = {
    ("dagl", "gray_denoise"): PaperConvention(Convention("gray"), noise="dagl", self_ensemble=True, tile=10_000),
    ("dagl", "jpeg"): PaperConvention(Convention("gray"), self_ensemble=True, tile=10_000),
    ("dagl", "demosaic"): PaperConvention(Convention("rgb"), self_ensemble=True, tile=10_000),
    ("dncnn", "gray_denoise"): PaperConvention(Convention("gray", quantise=True), noise="kair"),
    ("enlca", "sr"): PaperConvention(_SR, tile=120_000),
    ("ignn", "sr"): PaperConvention(_SR, tile=40_000),
    ("lir", "color_denoise"): PaperConvention(Convention("rgb", quantise=True), noise="lir", multiple=32),
    ("lir", "derain"): PaperConvention(Convention("y", quantise=True), multiple=32),
    ("panet", "color_denoise"): PaperConvention(Convention("rgb", quantise=True), stored=True, tile=6_800),
    ("panet", "demosaic"): PaperConvention(Convention("rgb", quantise=True), tile=6_400),
    ("panet", "jpeg"): PaperConvention(Convention("gray", quantise=True), tile=6_400),
    ("panet", "sr"): PaperConvention(_SR, tile=6_400),
}


def published(paper: str, kind: str, scale: int = 1) -> PaperConvention:
    """The convention behind a paper's numbers for a kind of task; raises ConventionError for one that is not listed."""
    if (paper, kind) not in CONVENTIONS:
        known = ", ".join(" ".join(key) for key in CONVENTIONS)
        raise ConventionError(f"no convention of {paper!r} for {kind!r}; known: {known}")
    found = CONVENTIONS[paper, kind]
    return replace(found, convention=replace(found.convention, border=scale)) if kind == "sr" else found


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601 in MATLAB's form: ``(3, H, W)`` in [0, 1] -> ``(H, W)`` in [16/255, 235/255], not rounded."""
    return (np.tensordot(np.array(BT601), rgb, 1) + BT601_OFFSET) / 255


def psnr(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR in dB of two arrays of one shape, for a peak of 1; infinite where they are equal."""
    _check(restored, target)
    error = float(np.mean(np.square(np.subtract(restored, target, dtype=np.float64))))
    return -10 * np.log10(error).item() if error > 0 else float("inf")


def ssim(restored: np.ndarray, target: np.ndarray, window: str = "gaussian") -> float:
    """SSIM of two arrays ``(K, H, W)`` in [0, 1], the mean over K; sides of at least the window's."""
    _check(restored, target)
    if min(target.shape[1:]) < WINDOWS[window]:
        size = " x ".join(map(str, target.shape[1:]))
        raise ConventionError(f"{size} pixels are left to measure; SSIM needs {WINDOWS[window]} on each side")
    similarity = _ssim_gaussian if window == "gaussian" else _ssim_uniform
    return float(np.mean([similarity(a, b) for a, b in zip(restored, target, strict=True)]))


def _ssim_gaussian(a: np.ndarray, b: np.ndarray) -> float:
    kernel = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(a, b, data_range=1, **kernel)  # the mean over the valid region


def _ssim_uniform(a: np.ndarray, b: np.ndarray) -> float:
    side = WINDOWS["uniform"]

    def mean(x: np.ndarray) -> np.ndarray:
        total = np.pad(x, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        return (total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]) / side**2

    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) + mean(b * b) - mean_a**2 - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean())


def _array(image: Tensor | ArrayLike) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu().double().numpy()
    array = np.asarray(image)
    if not np.issubdtype(array.dtype, np.floating):
        raise ConventionError(f"an image holds {array.dtype}; it must hold floating point numbers in [0, 1]")
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ConventionError(f"an image has shape {array.shape}; it must be (C, H, W) or (1, C, H, W)")
    return array.astype(np.float64)


def _to_8_bit(planes: np.ndarray) -> np.ndarray:
    return np.round(planes * 255) / 255


def _check(restored: np.ndarray, target: np.ndarray) -> None:
    if restored.shape != target.shape:
        raise ConventionError(f"the restored image has shape {restored.shape}, the target {target.shape}")
    if not target.size:
        raise ConventionError(f"nothing is left to measure: shape {target.shape}")
    if not (np.isfinite(restored).all() and np.isfinite(target).all()):
        raise ConventionError("an image holds NaN or infinite values")
