"""LIR's adaptive filter: fixed 3x3 operators, a Gaussian high-pass and the identity, mixed by learned numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import mirror_pad
from ..operation import operation

#: Fixed operators in the order of α: Sobel x, y, Laplacian, edge, Sobel xy, yx, Roberts x, y; times 1e-3.
OPERATORS = (
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
    ((1, 0, 0), (0, -1, 0), (0, 0, 0)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, 0)),
)
OPERATOR_SCALE = 1e-3

#: The Gaussian of the high-pass filter: standard deviation and reach in pixels (15 x 15).
SIGMA, REACH = 5.0, 7

#: Numbers that the fast form takes at a time on a CPU; bounds its memory.
PORTION = 2**19


def plain(x: Tensor, alpha: Tensor, beta: Tensor, operators: Tensor, gaussian: Tensor) -> Tensor:
    """Σ_{i<8} α_i K_i * x + α_8 (x - G * x) + β x, every channel of `x` alike.

    x: (B, C, H, W)
    alpha, beta: (9,), (1,), the learned numbers
    operators: (8, 3, 3), the K_i, which see zeros around the image
    gaussian: (n,), n odd, a line of G, the outer product with itself; G sees the image continued by reflection
    """
    *of_operators, of_high_pass = alpha.to(x.dtype)
    blurred = _depthwise(mirror_pad(x, (len(gaussian) // 2,) * 4), torch.outer(gaussian, gaussian).to(x.dtype))
    y = beta.to(x.dtype) * x + of_high_pass * (x - blurred)
    for weight, operator in zip(of_operators, operators.to(x.dtype), strict=True):
        y = y + weight * _depthwise(x, operator, padding=1)
    return y


@operation(plain)
def mixed_filter(x: Tensor, alpha: Tensor, beta: Tensor, operators: Tensor, gaussian: Tensor) -> Tensor:
    """As one 3x3 kernel and a separable Gaussian: K * x - α_8 G * x with K = Σ_{i<8} α_i K_i + (α_8 + β) δ."""
    identity = F.pad(operators.new_ones(1, 1, 1), (1, 1, 1, 1))
    mixture = torch.cat([alpha[:8], alpha[8:] + beta])
    kernel = torch.einsum("i,ijk->jk", mixture, torch.cat([operators, identity]))
    return _Filter.apply(x, *(tensor.to(x.dtype) for tensor in (kernel, alpha[8], gaussian)))


class _Filter(torch.autograd.Function):
    """K * x - weight G * x for a 3x3 kernel K and the line of a symmetric G; keeps x alone for the backward pass.

    d_x = K^T d_y - weight G^T d_y, and the weight's gradient needs <d_y, G x> = <G^T d_y, x>. With its reflected
    borders G is a symmetric matrix times C, which halves the outermost rows and columns (they have one mirror image,
    the others two): G^T = C G C^-1 is the same blur.
    """

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, weight: Tensor, gaussian: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel, weight, gaussian)
        y = torch.empty_like(x)
        for images, out in _portions(x, y):
            blurred = _blur(images, gaussian)
            torch.addcmul(_depthwise(images, kernel, padding=1), blurred, -weight, out=out)
            del blurred  # before the next one is made
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, weight, gaussian = ctx.saved_tensors
        kernels = kernel.expand(x.shape[1], 1, 3, 3)
        d_x = torch.empty_like(x)
        d_kernel, d_weight = torch.zeros_like(kernel), torch.zeros_like(weight)
        for images, d_y, out in _portions(x, grad, d_x):
            blurred = _scale_edges_(_blur(_scale_edges_(d_y.clone(), 2), gaussian), 0.5)
            d_weight -= (blurred * images).sum()
            d_images, d_kernels, _ = torch.ops.aten.convolution_backward(
                d_y, images, kernels, None, [1, 1], [1, 1], [1, 1], False, [0, 0], x.shape[1], [True, True, False]
            )
            torch.addcmul(d_images, blurred, -weight, out=out)
            d_kernel += d_kernels.sum((0, 1))
        return d_x, d_kernel, d_weight, None


def _portions(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same images of each batch: all of them on a GPU, else as many as make up PORTION numbers, or one."""
    first = batches[0]
    count = len(first) if first.is_cuda else max(1, PORTION // first[0].numel())
    return zip(*(batch.split(count) for batch in batches), strict=True)


def _blur(x: Tensor, line: Tensor) -> Tensor:
    down = _depthwise(mirror_pad(x, (len(line) // 2,) * 4), line[:, None])
    return _depthwise(down, line[None, :])


def _scale_edges_(x: Tensor, factor: float) -> Tensor:
    """Multiply the outermost rows and the outermost columns, in place."""
    for edge in (x[:, :, :1], x[:, :, -1:], x[..., :1], x[..., -1:]):
        edge.mul_(factor)
    return x


def _depthwise(x: Tensor, kernel: Tensor, padding: int = 0) -> Tensor:
    """Every channel of `x` convolved with the one 2-d `kernel`; `padding` zeros around."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), padding=padding, groups=channels)
