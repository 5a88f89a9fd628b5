"""Operations that a GPU computes otherwise than a CPU: the same numbers come out, and under autocast finite ones.

`python -m pytest --noconftest -m gpu tests/models/test_gpu.py` also runs where there is little more than PyTorch. The
networks' definitions are compared on a CPU too, and the kernel's box sums in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from oracles import output_and_gradients
from test_contracts import CASES, made
from torch import Tensor, nn

from lib import models
from lib.models.blocks import Network
from lib.models.dagl import MGFAM
from lib.models.panet import PyramidAttention

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no Triton here")

TRAINED = [case for case, (name, _) in CASES.items() if name not in ("bicubic", "bm3d", "input", "nlm")]

#: Modules with bounds of their scores at which a GPU's blocks are of every kind, and with options of no network above.
MODULES = {
    "pyramid, one block": lambda: PyramidAttention(8),
    "pyramid, rows": lambda: PyramidAttention(8, max_scores=4 * 1700),
    "pyramid, strips": lambda: PyramidAttention(8, max_scores=9 * 700),
    "pyramid, one level": lambda: PyramidAttention(8, scales=[1], max_scores=40_000),
    "DAGL, neighbours": lambda: MGFAM(8, heads=2, patch=5, stride=3, no_threshold=4),
    "DAGL, paper": lambda: MGFAM(8, heads=2, patch=3, stride=2, weights="paper", max_scores=3000),
}

#: Largest relative error of outputs; of gradients; and of these as a share of the largest, for tensors with hardly any.
TOLERANCES = {torch.float64: (1e-9, 1e-6, 1e-12), torch.float32: (1e-5, 1e-3, 1e-5)}


def case(name: str) -> tuple[Network, Tensor]:
    """A network or module in float64, all its losses begun, and two images or features."""
    if name in TRAINED:
        network, channels, _ = made(name)
    else:
        torch.manual_seed(0)
        network, channels = MODULES[name](), 8
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    network.double().train().start_step(0.999, torch.Generator())
    return network, torch.rand(2, channels, 24, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def units(network: Network, hook: Callable[[nn.Module, tuple[Tensor], Tensor], Tensor | None]) -> Iterator[None]:
    """Every module `nn.ReLU` of the network calls `hook` with its input and output, and gives what that returns."""
    found = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    within, inplace = [module.register_forward_hook(hook) for module in found], [module.inplace for module in found]
    for module in found:
        module.inplace = False
    try:
        yield
    finally:
        for module, handle, before in zip(found, within, inplace, strict=True):
            handle.remove()
            module.inplace = before


@pytest.fixture
def all_digits():
    """No convolution rounds its factors to TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", [*TRAINED, *MODULES])
def test_every_form_on_every_device_computes_the_definitions(name, device, dtype, all_digits):
    network, x = case(name)
    # A gradient jumps where rounding moves a unit across zero: forms are compared with the same units open.
    positive: list[Tensor] = []
    with models.plain(), units(network, lambda _, inputs, output: positive.append(inputs[0].detach() > 0)):
        expected = output_and_gradients(network, x)
    network, x = network.to(device, dtype), x.to(device, dtype)
    forms = []
    for form in [contextlib.nullcontext, models.plain][: 1 if device == "cpu" else 2]:
        left = iter(positive)
        with form(), units(network, lambda _, inputs, output, left=left: inputs[0] * next(left).to(output.device)):
            forms.append([tensor.double().cpu() for tensor in output_and_gradients(network, x)])
        assert next(left, None) is None
    of_output, of_gradients, of_largest = TOLERANCES[dtype]
    largest = max(tensor.norm() for tensor in expected[1:])
    for found in forms:
        assert (found[0] - expected[0]).norm() <= of_output * expected[0].norm()
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert (a - b).norm() <= of_gradients * b.norm() + of_largest * largest


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("name", TRAINED)
def test_every_network_trains_a_step_under_autocast(name, device):
    network, x = case(name)
    network.to(device, torch.float32, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.autocast(device, torch.bfloat16):
        y = network(x.to(device, torch.float32))
    loss = y.float().square().mean() + network.auxiliary_loss()
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss) and all(parameter.isfinite().all() for parameter in network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@needs_triton
def test_a_triton_that_does_not_work_is_not_used():
    """It has no way to start a kernel on a CPU but its interpreter."""
    from lib.models.panet import box_kernel

    box_kernel.works.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not work here"):
        assert not box_kernel.works(torch.device("cpu"))


@needs_triton
@pytest.mark.parametrize(
    ("height", "width", "max_scores", "delay", "margin"),
    [(3, 4, 2**20, 0, 0), (5, 4, 12 * 60, 1, 0), (4, 3, 3 * 48, 1, 0), (2, 6, 4 * 60, 1, 1)],
    ids=["one block", "rows", "one row a block", "strips"],
)
def test_the_kernels_box_sums_are_those_of_additions(height, width, max_scores, delay, margin):
    """In a process of its own: Triton decides by the environment, once, whether it interprets."""
    code = f"""
import importlib
import torch
from lib.models.panet import PyramidAttention, box_kernel
attention = importlib.import_module("lib.models.panet.block_attention")
assert box_kernel.works(torch.device("cpu"))
torch.manual_seed(0)
box_kernel.TILE, box_kernel.NEIGHBOURS = 32, 2
module = PyramidAttention(4, scales=(1, 0.7), max_scores={max_scores}).double()
x = torch.randn(1, 4, {height}, {width}, dtype=torch.float64)
found = []
for kernel in (None, box_kernel):
    attention.kernel_for = lambda device: kernel
    module.zero_grad()
    y = module(x.requires_grad_())
    x.grad = None
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    found.append([y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())])
tiling = attention._Tiling(x, [z.shape[2:] for z in module.pyramid(x)], {max_scores})
print(tiling.delay, tiling.margin, max(float((a - b).norm() / b.norm()) for a, b in zip(*found)))
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *kinds, difference = ran.stdout.split()
    assert kinds == [str(delay), str(margin)] and float(difference) < 1e-12
