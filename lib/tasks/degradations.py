"""Degradations of photographs, built by name: noise, downscaling, a colour filter array, compression, weather.

A degradation maps a batch of clean images to degraded ones and draws from the generator it is given, nothing else. None
clips or rounds its result unless it says so. Levels of noise are on the 0-255 scale, images in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

#: An option that is a number, or drawn uniformly from (low, high).
Range = float | tuple[float, float]

BORDERS = ("mirror", "replicate")
ROUNDINGS = ("none", "last", "both")


class DegradationError(ValueError):
    """A degradation cannot be built or applied: unknown name or option, value out of range, image that does not fit."""


@dataclass(frozen=True)
class Degradation:
    """``degradation(clean, generator)``: degraded version of a batch ``(B, C, H, W)``, float32 in [0, 1].

    scale: how many times smaller the result is
    fresh: whether training degrades every crop anew; otherwise a whole image is degraded once and then cropped
    multiple: the sides of a clean image must be multiples of it
    period: of the pattern that the result has, in pixels; unchanged by transposition
    eight_bit: whether the result has the 256 levels of a file
    """

    scale: ClassVar[int] = 1
    fresh: ClassVar[bool] = True
    multiple: ClassVar[int] = 1
    period: ClassVar[int] = 1
    eight_bit: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name by which `build` makes it."""
        return next(name for name, kind in DEGRADATIONS.items() if kind is type(self))

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def drawn(self) -> dict:
        """The options that a fixed realisation depends on: all that are not at their default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def options(self) -> dict:
        """Name and options, from which `build` makes the same again."""
        return {"name": self.name, **asdict(self)}

    def generator(self, images: str, image: str, number: int = 0) -> torch.Generator:
        """Generator of one realisation of an image's degradation, on the CPU.

        Seeded by the sha256 of set, image, degradation and number, hence independent of order and machine.
        """
        drawn = {key: _plain(value) for key, value in self.drawn().items()}
        key = json.dumps([images, image, self.name, drawn, number], sort_keys=True)
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)

    def realise(self, clean: Tensor, images: str, image: str, number: int = 0) -> Tensor:
        """The degraded version of `clean` in evaluation, the same at every call.

        images, image: name of the set and of the image in it
        number: of the realisation
        """
        return self(clean, self.generator(images, image, number))


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise, neither clipped nor rounded.

    sigma: standard deviation; [low, high] draws one for each image of a batch, uniformly (blind denoising)
    quantise: clip and round the noisy image to 8 bit, as noisy images that were stored as files (PANet)
    noise: how it is drawn in evaluation, see `NOISE`; without effect on training
    """

    sigma: Range
    quantise: bool = False
    noise: str = "study"

    #: How the noise of an evaluation is drawn. study: a generator per set, image and sigma. dagl: PyTorch's CPU
    #: generator set to 1 before every image. lir, kair: NumPy's legacy generator set to 0 before every image, drawn in
    #: the order rows, columns, channels; LIR draws for the whole image and crops it to multiples of 32 afterwards, so
    #: degrade the whole image and crop then; KAIR is the toolbox that DnCNN's published weights come from.
    NOISE: ClassVar[tuple[str, ...]] = ("study", "dagl", "lir", "kair")

    def __post_init__(self):
        _store_range(self, "sigma", 0, 255)
        if self.noise not in self.NOISE:
            raise DegradationError(f"gaussian_noise: noise is {self.noise!r}; known: {', '.join(self.NOISE)}")
        if self.noise != "study" and not isinstance(self.sigma, float):
            raise DegradationError(f"gaussian_noise: noise {self.noise!r} needs one sigma, not {self.sigma}")

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        sigma = _uniform(self.sigma, clean, generator)
        return self._stored(clean + _normal(clean.shape, clean, generator) * (sigma / 255))

    def drawn(self) -> dict:
        return {"sigma": self.sigma}  # stored in 8 bit or not, the noise stays the same

    def realise(self, clean: Tensor, images: str, image: str, number: int = 0) -> Tensor:
        if self.noise == "study":
            return super().realise(clean, images, image, number)
        if self.noise == "dagl":
            return self(clean, torch.Generator().manual_seed(1 + number))
        rows_first = np.random.RandomState(number).standard_normal((len(clean), *clean.shape[2:], clean.shape[1]))
        noise = torch.from_numpy(np.moveaxis(rows_first, 3, 1).astype(np.float32)).to(clean.device)
        return self._stored(clean + noise * (_highest(self.sigma) / 255))

    def _stored(self, noisy: Tensor) -> Tensor:
        return to_8_bit(noisy) if self.quantise else noisy


@dataclass(frozen=True)
class Bicubic(Degradation):
    """Downscaling by MATLAB's imresize, the input of super-resolution; see `resize` for the options.

    The defaults give the published low-resolution files of Set5, Set14 and B100 to the last pixel. A second form of
    Set5's circulates (border mirrored). IGNN downscales with border mirrored and rounding none.
    """

    scale: int = field()  # type: ignore[misc]  # no default, not even the inherited 1
    border: str = "replicate"
    rounding: str = "both"

    fresh: ClassVar[bool] = False

    def __post_init__(self):
        if self.scale not in (2, 3, 4):
            raise DegradationError(f"bicubic: scale is {self.scale!r}; it must be 2, 3 or 4")
        _check_choice("bicubic", "border", self.border, BORDERS)
        _check_choice("bicubic", "rounding", self.rounding, ROUNDINGS)

    @property
    def multiple(self) -> int:  # type: ignore[override]
        return self.scale

    @property
    def eight_bit(self) -> bool:  # type: ignore[override]
        return self.rounding != "none"

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return resize(clean, down=self.scale, border=self.border, rounding=self.rounding)


@dataclass(frozen=True)
class Bayer(Degradation):
    """Colour filter array RGGB: each pixel keeps one of its three values, the other two are zero.

    The form of the papers' inputs: three channels at full size (its PSNR is their row "Mosaiced"). Applied to the crop,
    so that the pattern starts with R at the top left whatever was cropped and flipped.
    """

    period: ClassVar[int] = 2

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        if clean.shape[1] != 3:
            raise DegradationError(f"bayer: the image has {clean.shape[1]} channels; it must have 3")
        kept = torch.zeros_like(clean)
        for channel, row, column in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
            kept[:, channel, row::2, column::2] = clean[:, channel, row::2, column::2]
        return kept


@dataclass(frozen=True)
class Jpeg(Degradation):
    """JPEG compression and decompression in 8 bit by Pillow (libjpeg, integer DCT).

    quality: 1 to 100; a list draws one of its values for each image of a batch (one model for all qualities), with the
        8 x 8 grid at a random place, as in a crop from a compressed photograph

    The quantisation tables are those of ITU-T T.81 Annex K scaled by the IJG rule: each entry t becomes
    floor((t S + 50) / 100) in 1..255, S = floor(5000 / quality) below 50, else 200 - 2 quality; as MATLAB's imwrite.
    Gray is compressed as one component; colour as YCbCr with chroma at half size (4:2:0), Pillow's default.
    """

    quality: int | tuple[int, ...]

    eight_bit: ClassVar[bool] = True

    def __post_init__(self):
        values = self.quality if isinstance(self.quality, Sequence) else [self.quality]
        if not values or any(isinstance(q, bool) or not isinstance(q, int) or not 1 <= q <= 100 for q in values):
            raise DegradationError(f"jpeg: quality is {self.quality!r}; it must be 1 to 100, or a list of such")
        object.__setattr__(self, "quality", tuple(values) if isinstance(self.quality, Sequence) else self.quality)

    @property
    def fresh(self) -> bool:  # type: ignore[override]
        return isinstance(self.quality, tuple)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        if isinstance(self.quality, int):
            quality = self.quality
            return torch.stack([self._compress(image, quality) for image in clean])
        which = torch.randint(len(self.quality), (len(clean),), generator=generator, device=generator.device)
        place = torch.randint(8, (len(clean), 2), generator=generator, device=generator.device)
        images = []
        for image, index, (row, column) in zip(clean, which.tolist(), place.tolist(), strict=True):
            shifted = F.pad(image, (column, 0, row, 0), mode="replicate")
            images.append(self._compress(shifted, self.quality[index])[:, row:, column:])
        return torch.stack(images)

    @staticmethod
    def _compress(image: Tensor, quality: int) -> Tensor:
        pixels = (to_8_bit(image) * 255).round().byte().cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(
            file, "JPEG", quality=quality
        )
        decoded = np.asarray(Image.open(file)).reshape(*image.shape[1:], len(pixels))
        return torch.from_numpy(np.moveaxis(decoded, 2, 0).copy()).to(image) / 255


@dataclass(frozen=True)
class Rain(Degradation):
    """Streaks of rain, ours: a stand-in for the paired sets, clipped to [0, 1] since bright rain saturates.

    O = B + S, the additive model of Rain100. S is gray: drops at random pixels, drawn out into lines of one length and
    one direction per image.

    density: share of the pixels at which a streak is centred
    length: of the streaks in pixels
    angle: from the vertical, in degrees
    brightness: of a streak, on the 0-255 scale

    Each of the last three is a number or [low, high], drawn for each image; the brightness of a streak varies by half.
    """

    density: float = 0.004
    length: Range = (10, 20)
    angle: Range = (-30, 30)
    brightness: Range = (60, 120)

    def __post_init__(self):
        if not 0 <= self.density <= 1:
            raise DegradationError(f"rain: density is {self.density!r}; it must be 0 to 1")
        _store_range(self, "length", 1, 64)
        _store_range(self, "angle", -90, 90)
        _store_range(self, "brightness", 0, 255)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        size = (len(clean), 1, *clean.shape[2:])
        length, angle, brightness = (_uniform(r, clean, generator) for r in (self.length, self.angle, self.brightness))
        drops = (_rand(size, clean, generator) < self.density) * (0.5 + 0.5 * _rand(size, clean, generator))
        lines = _line(length, torch.deg2rad(angle), 2 * math.ceil(_highest(self.length) / 2) + 3)
        streaks = _filter(drops, lines / lines.amax((2, 3), keepdim=True), "zero")
        return (clean + streaks * (brightness / 255)).clamp(0, 1)


@dataclass(frozen=True)
class Blur(Degradation):
    """Blur by one kernel per image, ours: a stand-in for the paired sets. The border is mirrored.

    kernel: gaussian, or motion (a straight line in a random direction)
    size: standard deviation of the Gaussian or length of the motion, in pixels; [low, high] is drawn for each image
    noise: standard deviation of the noise that is added afterwards, neither clipped nor rounded
    """

    kernel: str = "motion"
    size: Range = (3, 9)
    noise: float = 0.0

    def __post_init__(self):
        _check_choice("blur", "kernel", self.kernel, ("gaussian", "motion"))
        _store_range(self, "size", 0.1, 64)
        if not 0 <= self.noise <= 255:
            raise DegradationError(f"blur: noise is {self.noise!r}; it must be 0 to 255")

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        size = _uniform(self.size, clean, generator)
        if self.kernel == "gaussian":
            kernel = _gaussian(size, 2 * math.ceil(3 * _highest(self.size)) + 1)
        else:
            angle = _rand((len(clean), 1, 1, 1), clean, generator) * math.pi
            kernel = _line(size, angle, 2 * math.ceil(_highest(self.size) / 2) + 3)
        blurred = _filter(clean, kernel / kernel.sum((2, 3), keepdim=True), "mirror")
        return blurred + _normal(clean.shape, clean, generator) * (self.noise / 255) if self.noise else blurred


@dataclass(frozen=True)
class Haze(Degradation):
    """Haze over a plane, ours: a stand-in for the paired sets.

    I = J t + A (1 - t), t = exp(-beta d) (Koschmieder's law, as in the synthetic sets). The depth d rises linearly from
    0 to 1 across the image in a random direction within 45 degrees of upwards. On training crops the ramp spans the
    crop.

    beta: scattering; airlight: A, gray, in [0, 1]; a number or [low, high], drawn for each image
    """

    beta: Range = (0.6, 1.8)
    airlight: Range = (0.7, 1.0)

    def __post_init__(self):
        _store_range(self, "beta", 0, 10)
        _store_range(self, "airlight", 0, 1)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        beta, airlight = _uniform(self.beta, clean, generator), _uniform(self.airlight, clean, generator)
        angle = (_rand((len(clean), 1, 1, 1), clean, generator) - 0.5) * (math.pi / 2)
        rows, columns = (torch.linspace(-0.5, 0.5, n, device=clean.device) for n in clean.shape[2:])
        height = columns * torch.sin(angle) - rows[:, None] * torch.cos(angle)
        low, high = height.amin((2, 3), keepdim=True), height.amax((2, 3), keepdim=True)
        transmission = torch.exp(-beta * (height - low) / (high - low).clamp(min=1e-6))
        return clean * transmission + airlight * (1 - transmission)


@dataclass(frozen=True)
class Paired(Degradation):
    """The degraded photographs come with the set, in a folder next to the clean ones, with the same names."""

    fresh: ClassVar[bool] = False

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        raise DegradationError(
            "paired: there is no degraded image to go with this one; name sets of pairs in the task, or a degradation"
        )


DEGRADATIONS = {
    "gaussian_noise": GaussianNoise,
    "bicubic": Bicubic,
    "bayer": Bayer,
    "jpeg": Jpeg,
    "rain": Rain,
    "blur": Blur,
    "haze": Haze,
    "paired": Paired,
}


def build(name: str, **options) -> Degradation:
    """Make the degradation `name`; `options` are its fields.

    Raises DegradationError, one line, for an unknown name or option (it lists the known ones), a missing option or a
    value out of range.
    """
    if name not in DEGRADATIONS:
        raise DegradationError(f"unknown degradation {name!r}; known: {', '.join(sorted(DEGRADATIONS))}")
    known = {f.name: f.default for f in fields(DEGRADATIONS[name])}
    for key in options:
        if key not in known:
            raise DegradationError(f"{name}: unknown option {key!r}; known: {', '.join(known) or 'none'}")
    missing = [key for key, default in known.items() if default is MISSING and key not in options]
    if missing:
        raise DegradationError(f"{name}: option {missing[0]!r} is missing")
    return DEGRADATIONS[name](**options)


def resize(image: Tensor, up: int = 1, down: int = 1, border: str = "mirror", rounding: str = "none") -> Tensor:
    """MATLAB's imresize, bicubic (a = -0.5), antialiased when downscaling: ``(B, C, H, W)`` -> ``(B, C, H', W')``.

    up, down: whole factors, one of them 1; a downscaled image has sides that are multiples of `down`
    border: `mirror` extends the image symmetrically, as MATLAB does today; `replicate` repeats the outermost pixel, as
        the release that made the published low-resolution files
    rounding: `both` rounds to 8 bit after the pass along the columns and after the one along the rows, as MATLAB does
        with 8-bit images; `last` after both; `none` neither clips nor rounds
    """
    if any(side % down for side in image.shape[2:]):
        raise DegradationError(f"an image of {tuple(image.shape[2:])} pixels has sides that are no multiples of {down}")
    x = (image.double() * 255).round() if rounding != "none" else image
    for side in (2, 3):
        x = _resize_side(x, side, up, down, border)
        if rounding == "both" or (rounding == "last" and side == 3):
            x = (x + 0.5).floor().clamp(0, 255)  # MATLAB rounds halves up
    return (x / 255).to(image.dtype) if rounding != "none" else x


def _resize_side(x: Tensor, side: int, up: int, down: int, border: str) -> Tensor:
    reach = 2 * down  # of the kernel, a multiple of `down` that keeps the grid in place
    sizes = list(x.shape[2:])
    sizes[side - 2] = (sizes[side - 2] + 2 * reach) * up // down
    x = F.interpolate(_extend(x, side, reach, border), sizes, mode="bicubic", antialias=True)
    return x.narrow(side, reach * up // down, sizes[side - 2] - 2 * reach * up // down)


def _extend(x: Tensor, side: int, by: int, border: str) -> Tensor:
    """`x` with `by` more pixels at both ends of one side."""
    n = x.shape[side]
    index = torch.arange(-by, n + by, device=x.device)
    if border == "replicate":
        return x.index_select(side, index.clamp(0, n - 1))
    index = index % (2 * n)
    return x.index_select(side, torch.minimum(index, 2 * n - 1 - index))


def _filter(x: Tensor, kernels: Tensor, border: str) -> Tensor:
    """Every image of ``(B, C, H, W)`` filtered by its own kernel of ``(B, 1, k, k)``, k odd; same size."""
    batch, channels, reach = *x.shape[:2], kernels.shape[-1] // 2
    padding = reach if border == "zero" else 0
    for side in (2, 3) if border != "zero" else ():
        x = _extend(x, side, reach, border)
    weight = kernels.to(x.dtype).repeat_interleave(channels, 0)
    out = F.conv2d(x.flatten(0, 1)[None], weight, padding=padding, groups=batch * channels)
    return out.unflatten(1, (batch, channels))[0]


def _line(length: Tensor, angle: Tensor, side: int) -> Tensor:
    """Lines through the centre, one pixel wide with soft edges: ``(B, 1, 1, 1)`` pixels and radians from the vertical
    -> ``(B, 1, side, side)`` in [0, 1]."""
    at = torch.arange(side, device=length.device) - side // 2
    rows, columns = at[:, None], at
    along = columns * torch.sin(angle) + rows * torch.cos(angle)
    beyond = (along.abs() - (length - 1) / 2).clamp(min=0)
    across = columns * torch.cos(angle) - rows * torch.sin(angle)
    return (1 - torch.hypot(across, beyond)).clamp(min=0)


def _gaussian(sigma: Tensor, side: int) -> Tensor:
    at = torch.arange(side, device=sigma.device) - side // 2
    return torch.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))


def to_8_bit(image: Tensor) -> Tensor:
    """Clamped to [0, 1] and rounded to the 256 levels of a file."""
    return (image.clamp(0, 1) * 255).round() / 255


def _normal(size: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, device=generator.device).to(like.device)


def _rand(size: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device).to(like.device)


def _uniform(value: Range, like: Tensor, generator: torch.Generator) -> Tensor:
    """One value for each image, ``(B, 1, 1, 1)``: the number, or drawn from [low, high]."""
    size = (len(like), 1, 1, 1)
    if isinstance(value, float):
        return torch.full(size, value, device=like.device)
    low, high = value
    return low + (high - low) * _rand(size, like, generator)


def _highest(value: Range) -> float:
    return value if isinstance(value, float) else value[1]


def _store_range(degradation: Degradation, option: str, low: float, high: float) -> None:
    """Turn an option into a float or a tuple (low, high), checked to lie in [low, high] and to ascend."""
    value = getattr(degradation, option)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high for v in values)
    if not numbers or len(values) > 2 or (len(values) != 1 and values != sorted(values)) or not values:
        known = f"a number from {low} to {high}, or [low, high] in that range"
        raise DegradationError(f"{degradation.name}: {option} is {value!r}; it must be {known}")
    stored = float(values[0]) if len(values) == 1 else (float(values[0]), float(values[1]))
    object.__setattr__(degradation, option, stored)


def _check_choice(name: str, option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise DegradationError(f"{name}: {option} is {value!r}; known: {', '.join(known)}")


def _plain(value):
    """A form in which equal options look equal: 25 and 25.0, lists and tuples."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
