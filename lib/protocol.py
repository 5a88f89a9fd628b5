"""The ruler: PSNR and SSIM, and everything that changes them, stated as one value.

Images are tensors or arrays ``(C, H, W)`` or ``(1, C, H, W)`` with values in [0, 1]. A measurement clamps, rounds to
8 bit, takes the measured channel and leaves out the border, in that order, in float64.

PSNR = 10 log10(1 / MSE), the MSE over all measured channels. SSIM is that of the MATLAB script of Wang et al. (TIP
2004): 11 x 11 Gaussian window of 1.5 pixels, K = (0.01, 0.03), population covariance, mean over the valid region and
over the channels. Y is that of MATLAB's rgb2ycbcr: BT.601 from 16 to 235 on the 0-255 scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from skimage.metrics import structural_similarity
from torch import Tensor

#: Y of MATLAB's rgb2ycbcr for R, G, B in [0, 1], on the 0-255 scale, and its offset.
BT601 = np.array([65.481, 128.553, 24.966])
BT601_OFFSET = 16.0

#: What can be measured -> its name in a table.
MEASURED = {
    "gray": "gray",
    "rgb": "RGB",
    "r": "R",
    "g": "G",
    "b": "B",
    "y": "Y of BT.601, 16-235",
    "y8": "Y of BT.601, 16-235, rounded to 8 bit",
}

#: Side of the SSIM window.
WINDOW = 11


class ProtocolError(ValueError):
    """Two images cannot be measured, or not in the way asked for."""


@dataclass(frozen=True)
class Protocol:
    """How a restored image is compared with its target.

    measured: `gray` (one channel), `rgb` (all channels), `r`, `g`, `b` (one of them), `y` or `y8` (Y as MATLAB gives
        it for an 8-bit image, rounded); a one-channel image is its own `y`
    border: pixels left out on each side; super-resolution leaves out as many as its scale
    quantise: round both images to 8 bit first, as if they had been saved
    clamp: clamp both images to [0, 1] first

    Raises ProtocolError for a value outside these.
    """

    measured: str = "gray"
    border: int = 0
    quantise: bool = False
    clamp: bool = True

    def __post_init__(self):
        if self.measured not in MEASURED:
            raise ProtocolError(f"measured is {self.measured!r}; known: {', '.join(MEASURED)}")
        if not isinstance(self.border, int) or self.border < 0:
            raise ProtocolError(f"border is {self.border!r}; it must be a whole number of pixels, 0 or more")

    def describe(self) -> str:
        """One line for the head of a table."""
        border = f"border of {self.border} px left out" if self.border else "whole image"
        rounding = "rounded to 8 bit" if self.quantise else "not rounded"
        clamping = "clamped to [0, 1]" if self.clamp else "not clamped"
        return f"{MEASURED[self.measured]}, {border}, {clamping}, {rounding}"

    def measure(
        self, restored: Tensor | ArrayLike, target: Tensor | ArrayLike, clamp: bool | None = None
    ) -> dict[str, float]:
        """``psnr`` in dB (inf for equal images) and ``ssim`` of `restored` against `target`.

        `clamp` overrides the protocol's: published PSNR of noisy inputs is that of the unclamped image. Raises
        ProtocolError where the images are empty, differ in shape, lack the channel, hold NaN, or are too small for the
        border and the SSIM window.
        """
        planes = self._planes(restored, "restored", clamp), self._planes(target, "target", clamp)
        return {"psnr": psnr(*planes), "ssim": ssim(*planes)}

    def _planes(self, image: Tensor | ArrayLike, which: str, clamp: bool | None) -> np.ndarray:
        """The measured channels ``(K, H, W)``, float64."""
        planes = _array(image, which)
        if self.clamp if clamp is None else clamp:
            planes = planes.clip(0, 1)
        if self.quantise:
            planes = np.round(planes * 255) / 255
        if planes.shape[0] not in (
            (3,) if self.measured in ("r", "g", "b") else (1,) if self.measured == "gray" else (1, 3)
        ):
            raise ProtocolError(
                f"the {which} image has {planes.shape[0]} channels, which {self.measured!r} cannot measure"
            )
        if self.measured in ("r", "g", "b"):
            planes = planes["rgb".index(self.measured)][None]
        elif self.measured in ("y", "y8") and len(planes) == 3:
            planes = luma(planes)[None]
            if self.measured == "y8":
                planes = np.round(planes * 255) / 255
        if self.border:
            planes = planes[:, self.border : -self.border, self.border : -self.border]
        return planes


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601 in MATLAB's form, ``(3, H, W)`` in [0, 1] -> ``(H, W)`` in [16/255, 235/255]."""
    return (np.tensordot(BT601, rgb, 1) + BT601_OFFSET) / 255


def psnr(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR in dB of two arrays of one shape with a peak of 1; infinite where they are equal."""
    _check(restored, target)
    error = np.mean(np.square(restored.astype(np.float64) - target))
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def ssim(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM of two arrays ``(K, H, W)`` with a range of 1, the mean over K; H and W at least 11."""
    _check(restored, target)
    if min(target.shape[1:]) < WINDOW:
        size = " x ".join(map(str, target.shape[1:]))
        raise ProtocolError(f"{size} pixels are left to measure; SSIM needs {WINDOW} x {WINDOW}")
    kernel = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [structural_similarity(a, b, data_range=1, **kernel) for a, b in zip(restored, target, strict=True)]
    return float(np.mean(values))


def _array(image: Tensor | ArrayLike, which: str) -> np.ndarray:
    array = image.detach().cpu().double().numpy() if isinstance(image, Tensor) else np.asarray(image, np.float64)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ProtocolError(f"the {which} image has shape {array.shape}; it must be (C, H, W) or (1, C, H, W)")
    return array


def _check(restored: np.ndarray, target: np.ndarray) -> None:
    if restored.shape != target.shape:
        raise ProtocolError(f"the restored image has shape {restored.shape}, the target {target.shape}")
    if not target.size:
        raise ProtocolError(f"nothing to measure: the images have shape {target.shape}")
    if not (np.isfinite(restored).all() and np.isfinite(target).all()):
        raise ProtocolError("an image holds NaN or infinite values")
