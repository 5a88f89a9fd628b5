"""Parts that three or more networks share: the training loop's view of a network, EDSR's parts, the residual trunk."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Largest number of attention scores that a module holds at a time; bounds memory, never changes a result.
MAX_SCORES = 2**23

#: Scores of a block on a GPU: many, because starting an operation takes as long as computing many scores.
GPU_SCORES = 2**25

#: Scores of one block on a CPU where there is a choice: a few blocks of float32 stay in its last cache.
CACHED_SCORES = 2**20

#: Tensors of NonLocal without effect or gradient: they add one number to the scores of all keys of a query, and the
#: softmax takes it away again.
INERT = ("key.bias",)

#: Mean colour of DIV2K, subtracted by the networks that descend from EDSR.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class ImageError(ValueError):
    """An image that a network cannot take: smaller than its documented minimum."""


class Network(nn.Module):
    """A network as training sees it: besides `forward` it may have a schedule and a loss of its own; here, none."""

    def start_step(self, progress: float, generator: torch.Generator) -> None:
        """Called before every training step with the finished fraction of the run, in [0, 1).

        Schedules inside a network (a loss that starts late, features drawn anew) live here; `generator` is on the CPU.
        """

    def auxiliary_loss(self) -> Tensor | float:
        """Loss that the last forward pass in training mode adds to the task's, already weighted."""
        return 0.0


class Attention(Network):
    """A module inside a network that gathers over the image: ``forward(x) = identity(x) + what it adds``.

    ``(B, width, H, W)`` to the same shape. A module that returns a tuple of tensors (or None, for one that an option
    leaves out) has no identity: it adds all of them. `lib.insights` finds these modules in a network by this class and
    measures the second term alone.
    """

    def identity(self, x: Tensor) -> Tensor:
        """The part of the output that is there without attention, in the output's shape; here the input itself."""
        return x


@contextlib.contextmanager
def independent_draws(place: int | str) -> Iterator[None]:
    """Draw the initial weights of the layers made within from a stream of their own.

    The stream is a function of ``torch.initial_seed()`` and `place`, a number or name within the network; the layers
    made afterwards start as if there were none within. So two networks that differ in these layers alone start, at the
    same seed, from the same weights in all others, and their results can be compared seed by seed.
    """
    seed = random.Random(f"{torch.initial_seed()} {place}").getrandbits(63)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def positive(**options: float | None) -> None:
    """Raise ValueError unless all options that are given are above zero and finite."""
    for name, value in options.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} {value} is not above 0" if value != math.inf else f"{name} is not finite")


def conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    """Convolution that keeps the size: zero padding k//2, stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def mirror_pad(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Reflection padding of `sides` (left, right, top, bottom) by any amount, by F.pad where it can.

    The image is continued periodically where the padding exceeds it; an axis of one pixel repeats that pixel.
    """
    left, right, top, bottom = sides
    if max(left, right) < x.shape[3] and max(top, bottom) < x.shape[2]:
        return F.pad(x, (left, right, top, bottom), mode="reflect")
    for dim, before, after in ((2, top, bottom), (3, left, right)):
        size = x.shape[dim]
        period = max(2 * (size - 1), 1)
        index = torch.arange(-before, size + after, device=x.device).remainder(period)
        x = x.index_select(dim, torch.minimum(index, period - index) if size > 1 else index)
    return x


def enlarge(x: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement by `scale`, the image itself for 1."""
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)  # a = -0.5, as MATLAB's


class ResBlock(nn.Module):
    """x + res_scale * conv(activation(conv(x))), without normalisation (EDSR).

    `activation` is a module; handing the same one to several blocks ties its parameters.
    """

    def __init__(self, width: int, activation: nn.Module, res_scale: float = 1.0):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), activation, conv(width, width))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


class Upsampler(nn.Sequential):
    """Sub-pixel upsampling: x2 and x4 in steps of two, x3 in one; no activation (EDSR)."""

    def __init__(self, width: int, scale: int):
        if scale not in (1, 2, 3, 4):
            raise ValueError(f"scale {scale} is not one of 1, 2, 3, 4")
        steps = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[scale]
        super().__init__(*[layer for s in steps for layer in (conv(width, width * s * s), nn.PixelShuffle(s))])


class Trunk(Network):
    """Head, residual blocks with attention modules between them, upsampler, tail: the skeleton of EDSR and its heirs.

    colors: channels of the image (1 or 3)
    width, blocks: channels of the features, number of residual blocks
    scale: 1 (restoration at the input's size), 2, 3 or 4
    activation: makes one activation module; called once per block, or once in all with `tie_activation`
    attention: makes one attention module for the given width; None leaves the trunk plain
    positions: number of residual blocks before each attention module, ascending (PANet: the middle; ENLCN: 0, 8, ...)
    feature_skip: add the head's features after the body (EDSR); DAGL has none
    image_residual: add the input image to the output (DAGL)
    image_skip: the study's option for short trainings, off in every published network: add the input, for `scale` > 1
        its bicubic enlargement, to a last convolution that starts at zero
    mean_shift: subtract the mean colour of DIV2K from a colour image and add it back at the end
    """

    mean: Tensor

    def __init__(
        self,
        colors: int,
        width: int,
        blocks: int,
        *,
        scale: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        tie_activation: bool = False,
        res_scale: float = 1.0,
        attention: Callable[[int], nn.Module] | None = None,
        positions: Sequence[int] = (),
        feature_skip: bool = True,
        image_residual: bool = False,
        image_skip: bool = False,
        mean_shift: bool = False,
    ):
        super().__init__()
        positive(width=width, res_scale=res_scale)
        if colors not in (1, 3):
            raise ValueError(f"colors {colors} is not 1 or 3")
        if blocks < 0:
            raise ValueError(f"blocks {blocks} is negative")
        if any(not 0 <= p <= blocks for p in positions):
            raise ValueError(f"positions {list(positions)} do not all lie in 0..{blocks}, the number of blocks")
        self.scale = scale
        self.feature_skip = feature_skip
        self.image_skip = image_skip or image_residual
        mean = torch.tensor(DIV2K_MEAN if mean_shift and colors == 3 else [0.0] * colors)
        self.register_buffer("mean", mean.view(1, colors, 1, 1), persistent=False)

        shared = activation() if tie_activation else None
        self.head = conv(colors, width)
        body: list[nn.Module] = []
        for index in range(blocks + 1):
            for place, position in enumerate(positions):
                if attention and position == index:
                    with independent_draws(place):
                        body.append(attention(width))
            if index < blocks:
                body.append(ResBlock(width, shared or activation(), res_scale))
        self.body = nn.Sequential(*body, conv(width, width))
        self.upsampler = Upsampler(width, scale)
        self.tail = conv(width, colors)
        if image_skip:
            for tensor in self.tail.parameters():
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(x - self.mean)
        deep = self.body(features)
        residual = self.tail(self.upsampler(deep + features if self.feature_skip else deep))
        return residual + (self.enlarge(x) if self.image_skip else self.mean)

    def start_step(self, progress: float, generator: torch.Generator) -> None:
        for module in self._with_schedules():
            module.start_step(progress, generator)

    def auxiliary_loss(self) -> Tensor | float:
        """Mean over the attention modules that have one."""
        losses = [module.auxiliary_loss() for module in self._with_schedules()]
        return sum(losses) / max(1, len(losses))

    def _with_schedules(self) -> list[Network]:
        return [module for module in self.body if isinstance(module, Network)]

    def enlarge(self, x: Tensor) -> Tensor:
        """The image-level skip: the input itself, or its bicubic enlargement for super-resolution."""
        return enlarge(x, self.scale)


class NonLocal(Attention):
    """Non-local module, with one head or several: x + out(softmax(q k^T) v), no 1/sqrt(d).

    q, k, v are 1x1 convolutions to `inner` channels, split over `heads`; `out` is 1x1 back to `width`. The form of
    DAGL's Table 5 rows NL (1 head of 64) and MHNL (4 heads of 16). Ours, the paper being silent: `out` starts at zero,
    so that the module starts as the identity (Wang et al., "Non-local Neural Networks", CVPR 2018). Exact and bounded
    in memory: PyTorch's fused attention never stores the score matrix.
    """

    def __init__(self, width: int, inner: int = 64, heads: int = 1):
        super().__init__()
        if inner % heads:
            raise ValueError(f"inner {inner} is not a multiple of heads {heads}")
        self.heads = heads
        self.query, self.key, self.value = (conv(width, inner, 1) for _ in range(3))
        self.out = conv(inner, width, 1)
        for tensor in self.out.parameters():
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3).contiguous()  # (B, heads, HW, channels)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.out(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


#: The non-local modules that a trunk can be given by name.
NON_LOCAL: dict[str, Callable[[int], nn.Module]] = {
    "nl": lambda width: NonLocal(width),
    "mhnl": lambda width: NonLocal(width, heads=4),
}


class CommonTrunk(Trunk):
    """EDSR's trunk with at most one attention module, in its middle: where the study compares modules.

    attention: "nl" or "mhnl" (non-local with one or four heads), a function from the width to a module, or None
    """

    def __init__(
        self,
        colors: int = 3,
        scale: int = 1,
        width: int = 64,
        blocks: int = 16,
        res_scale: float = 1.0,
        attention: str | Callable[[int], nn.Module] | None = None,
        image_skip: bool = False,
    ):
        if isinstance(attention, str) and attention not in NON_LOCAL:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(NON_LOCAL)}")
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            res_scale=res_scale,
            attention=NON_LOCAL[attention] if isinstance(attention, str) else attention,
            positions=(blocks // 2,),
            image_skip=image_skip,
            mean_shift=True,
        )
