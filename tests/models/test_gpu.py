"""What a GPU computes otherwise than a CPU: the same numbers come out, and under autocast finite ones. The fused boxes
also run here, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from test_contracts import CASES, made
from torch import Tensor, nn

from benchmarks import cases, measure
from lib.models import blocks, dagl, enlca, ignn, panet
from lib.params import ROOT

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no Triton here")

#: A module of each kind whose GPU form is another one, with the sizes it is asked for.
MODULES = {
    "pyramid, one block": lambda: panet.PyramidAttention(8),
    "pyramid, rows": lambda: panet.PyramidAttention(8, max_scores=4 * 1700),
    "pyramid, strips": lambda: panet.PyramidAttention(8, max_scores=9 * 700),
    "pyramid, one level": lambda: panet.PyramidAttention(8, scales=[1], max_scores=40_000),
    "DAGL": lambda: dagl.MGFAM(8, heads=2, patch=5, stride=3),
    "DAGL, neighbours": lambda: dagl.MGFAM(8, heads=2, patch=5, stride=3, no_threshold=4),
    "DAGL, paper": lambda: dagl.MGFAM(8, heads=2, patch=3, stride=2, weights="paper", max_scores=3000),
    "ENLCA": lambda: enlca.ENLCA(8, contrastive_start=0),
    "IGNN": lambda: ignn.FeatureGraph(8),
}


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients of a sum of it, with what the module adds to the loss."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)
    loss = (y * weights).sum()
    if isinstance(module, blocks.Network):
        loss = loss + 1000 * module.auxiliary_loss()
    loss.backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@needs_gpu
@pytest.mark.parametrize("size", [(3, 8, 13, 11), (1, 8, 24, 37)])
@pytest.mark.parametrize("name", MODULES)
def test_a_gpu_gives_the_same(name, size):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(size, dtype=torch.float64)
    expected = gradients(module, x)
    found = gradients(module.cuda(), x.cuda())
    assert len(found) == len(expected)
    largest = max(b.norm() for b in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b).norm() <= 1e-6 * b.norm() + 1e-12 * largest  # a tensor without effect has rounding alone


@needs_gpu
@pytest.mark.parametrize("name", cases.CASES)
def test_a_gpu_gives_the_reference_in_float32(name):
    case = cases.CASES[name]
    module, inputs = case.module("cuda"), case.inputs(20, 3, "cuda")
    with measure.precision("cuda", torch.float32):
        outputs = [cases.call(case.forms[form], module, inputs, "forward") for form in ("ours", "reference")]
    for a, b in zip(*outputs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@needs_gpu
@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name not in ("bm3d", "nlm", "input")])
def test_every_network_trains_under_autocast(case):
    network, colors, _ = made(case)
    network.cuda().train().start_step(0.999, torch.Generator())
    with torch.autocast("cuda", torch.bfloat16):
        y = network(torch.rand(2, colors, 32, 32, device="cuda"))
    loss = y.float().square().mean() + network.auxiliary_loss()
    if loss.requires_grad:
        loss.backward()
    assert torch.isfinite(loss) and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


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
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *kinds, difference = ran.stdout.split()
    assert kinds == [str(delay), str(margin)] and float(difference) < 1e-12
