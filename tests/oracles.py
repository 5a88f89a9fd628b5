"""Inputs and references that tests share, among them the values that the released modules give for a fixed fill."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from lib.models import plain

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def refused(kind: type[Exception], *words: str, match: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error of one line that has all `words`, and where given the expression `match`."""
    with pytest.raises(kind, match=match) as error:
        yield error
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def encoded(image: np.ndarray | Image.Image, kind: str = "png", **options) -> bytes:
    """The file of an image or of its pixels."""
    file, image = io.BytesIO(), image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def photographs(count: int = 3, side: int = 64, colors: int = 3) -> Tensor:
    """Parts of one photograph, ``(count, colors, side, side)`` in [0, 1]."""
    chelsea = torch.from_numpy(data.chelsea()).movedim(2, 0)[:colors].float() / 255
    return torch.stack([chelsea[:, 30 * i : 30 * i + side, 40 * i : 40 * i + side] for i in range(count)])


def fill(tensors: Sequence[Tensor | None], amplitudes: dict[int, float] | None = None) -> None:
    """Fill tensors, in the order of the released module's state dict, with a sin(1 + 0.61803 i + 7 p).

    a is 0.5 / sqrt(numel / shape[0]) for two or more dimensions, else 0.1, or what `amplitudes` says for position p.
    None stands for a tensor of the released module that ours does not have.
    """
    for p, tensor in enumerate(tensors):
        if tensor is None:
            continue
        a = 0.5 / (tensor.numel() / tensor.shape[0]) ** 0.5 if tensor.ndim > 1 else 0.1
        a = (amplitudes or {}).get(p, a)
        index = torch.arange(tensor.numel(), dtype=torch.float64)
        tensor.data = (a * torch.sin(1 + 0.61803 * index + 7 * p)).float().view(tensor.shape)


def randomised(module: Module, scale: float = 0.1) -> Module:
    """The module, its parameters drawn from N(0, scale^2)."""
    for tensor in module.parameters():
        tensor.data.normal_(0, scale)
    return module


def wave(*shape: int) -> Tensor:
    """The input: sin(0.3 + 0.37 i) over the flat index."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.3 + 0.37 * index).float().view(shape)


def assert_matches(
    output: Tensor, mean: float, std: float, absmax: float | None = None, values: Sequence[float] = ()
) -> None:
    """Compare mean, population std and, where given, largest magnitude and the values at n's 0, 1/7, 1/3, 1/2 and end
    to 1e-4."""
    flat = output.detach().double().flatten()
    n = len(flat)
    picked = flat[[0, n // 7, n // 3, n // 2, n - 1]]
    got = [flat.mean(), flat.std(correction=0), *([] if absmax is None else [flat.abs().max()]), *picked[: len(values)]]
    expected = [mean, std, *([] if absmax is None else [absmax]), *values]
    # the rows are printed with six decimals
    torch.testing.assert_close(torch.stack(got), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)


def output_and_gradients(module: nn.Module, x: Tensor, direction: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients for the input and every parameter, zero for none, of the output's sum, weighted by
    `direction`, and of the module's own loss."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = module(x)
    if direction is None:
        direction = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)
    ((y * direction).sum() + 1000 * module.auxiliary_loss()).backward()
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in (x, *module.parameters())]
    return [y.detach(), *gradients]


def assert_equals_its_definition(operation: Callable[..., Tensor | Sequence[Tensor]], *inputs: Tensor) -> None:
    """Compare an operation's outputs and its gradients for all inputs with those of its definition, in float64."""

    def outputs_and_gradients() -> list[Tensor]:
        leaves = [x.double().clone().requires_grad_() for x in inputs]
        found = operation(*leaves)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        torch.manual_seed(0)
        torch.autograd.backward(outputs, [torch.randn(y.shape, dtype=y.dtype) for y in outputs])
        return [*(y.detach() for y in outputs), *(x.grad for x in leaves)]

    fast = outputs_and_gradients()
    with plain():
        exact = outputs_and_gradients()
    for a, b in zip(fast, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))
