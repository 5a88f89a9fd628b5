"""Embeddings, by which IGNN compares patches: VGG19's first layers, or the features themselves."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tasks.degradations import resize
from ..blocks import conv

#: Mean and standard deviation of ImageNet's colours, which VGG19 was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The two convolutions' names: torchvision's, and those of files that number VGG's blocks.
NAMES = (("features.0", "features.2"), ("conv1_1", "conv1_2"))

#: The first digits of a file's sha256 in its name, as torchvision's weights have them.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")


class Embedding(nn.Module):
    """VGG19's first two convolutions with their ReLUs (relu1_2), frozen: ``(B, 1 or 3, H, W)`` to ``(B, 64, H, W)``."""

    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, self.width), conv(self.width, self.width)
        self.requires_grad_(False)
        self.loaded = True  # False while the weights are still to come
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def load(self, path: str | Path | None) -> None:
        """Take VGG19's weights from a file; None leaves NaN, to be replaced by ``load_state_dict``.

        Raises ValueError, naming the file, where it is missing, holds other tensors, or has another sha256 than the
        digits that torchvision puts into the name: ``vgg19-dcbb9e9d.pth``.
        """
        if path is None:
            self.loaded = False
            for parameter in self.parameters():
                nn.init.constant_(parameter, math.nan)
            return
        if not Path(path).is_file():
            raise ValueError(f"vgg19_weights {path}: no such file; get VGG19's weights or choose another embedding")
        digits = HASH_IN_NAME.search(Path(path).name)
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest() if digits else ""
        if digits and not found.startswith(digits[1]):
            raise ValueError(f"vgg19_weights {path}: its sha256 begins with {found[:8]}; damaged, download it again")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            names = next((names for names in NAMES if f"{names[0]}.weight" in state), NAMES[0])
            for name, layer in zip(names, (self.conv1, self.conv2), strict=True):
                layer.load_state_dict({key: state[f"{name}.{key}"] for key in ("weight", "bias")})
        except Exception as error:  # torch raises half a dozen types of error for such files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"vgg19_weights {path}: not a state dict of VGG19 ({reason})") from None

    def forward(self, x: Tensor) -> Tensor:
        if not self.loaded and self.conv1.weight.isnan().any():
            raise RuntimeError("embedding vgg19 has no weights: set vgg19_weights, or load a state dict")
        self.loaded = True
        x = (x - self.mean) / self.deviation
        return F.relu(self.conv2(F.relu(self.conv1(x))))


@torch.no_grad()
def embedded_by_themselves(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Features as their own embedding, and their smaller version, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x, resize(x, down=scale)
