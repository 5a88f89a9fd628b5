"""The attention modules that are measured, each as it runs and by its definition."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.models import blocks, dagl, enlca, ignn, lir, panet, plain

from .measure import precision

Outputs = tuple[Tensor, ...]


@contextlib.contextmanager
def definition() -> Iterator[None]:
    """Run every operation by its definition, PyTorch's fused attention too: it then makes all scores."""
    with plain(), sdpa_kernel(SDPBackend.MATH):
        yield


#: Both forms of a module compute the same outputs from the same weights and inputs.
FORMS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "ours": contextlib.nullcontext,
    "definition": definition,
}


@dataclass(frozen=True)
class Case:
    """One module.

    shape: of the first input ``(B, C, H, W)``, which gets a gradient
    targets: smallest ratios definition / ours on a CPU: of the time of a forward pass, of the time of forward and
        backward, and of the memory of each
    outputs: computes all outputs from the module and its inputs
    others: the other inputs, from the first
    blocks: bounds of the scores held at a time, powers of 2, that the part "blocks" compares with the module's own
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    targets: tuple[float, float, float]
    outputs: Callable[..., Outputs] = lambda module, x: (module(x),)
    others: Callable[[Tensor], Outputs] = lambda x: ()
    blocks: tuple[int, ...] = ()

    def module(self, device: str = "cpu", max_scores: int | None = None) -> nn.Module:
        """The module in training mode, nothing in it zero, with at most `max_scores` scores at a time if given."""
        torch.manual_seed(0)
        module = self.make().train()
        for tensor in module.parameters():
            if not tensor.any():
                nn.init.normal_(tensor, std=0.1)
        for part in module.modules():
            if max_scores and hasattr(part, "max_scores"):
                part.max_scores = max_scores
        return module.to(device)

    def inputs(self, side: int = 0, batch: int = 0, device: str = "cpu") -> Outputs:
        """Inputs of the case's own size, or of another side or batch."""
        images, channels, height, width = self.shape
        shape = (batch or images, channels, side or height, side or width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return tuple(t.to(device) for t in (x, *self.others(x)))


def enlca_outputs(module: enlca.ENLCA, x: Tensor) -> Outputs:
    y = module(x)
    return y, torch.as_tensor(module.auxiliary_loss()) / module.contrastive_weight


def ignn_outputs(module: ignn.GraphAggregation, x: Tensor, embedded: Tensor, small: Tensor) -> Outputs:
    graph = ignn.match_patches(embedded, small, module.scale, module.neighbours, module.window, module.max_scores)
    return ignn.paste_patches(x, graph.matches, module.scale, module.adapn), graph.difference


def embeddings(x: Tensor) -> Outputs:
    """Other features to match patches by, and their smaller copy."""
    embedded = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return embedded, F.avg_pool2d(embedded, 2)


CASES = {
    "pyramid attention": Case(lambda: panet.PyramidAttention(64, 2), (2, 64, 64, 64), (4, 3, 6), blocks=(20, 19, 18)),
    "non-local": Case(lambda: blocks.NonLocal(64), (2, 64, 64, 64), (1.5, 1.5, 6)),
    "DAGL stage": Case(dagl.MGFAM, (2, 64, 64, 64), (1.6, 1.5, 4), blocks=(19, 18, 17, 16)),
    "ENLCA with its loss": Case(
        lambda: enlca.ENLCA(64, contrastive_start=0), (2, 64, 48, 48), (3, 3, 4), enlca_outputs
    ),
    "IGNN graph": Case(
        lambda: ignn.GraphAggregation(64, 64, 2, 5, "both"), (1, 64, 80, 80), (3, 3, 6), ignn_outputs, embeddings
    ),
    "LIR filter": Case(lir.AdaptiveFilter, (2, 48, 128, 128), (4, 3, 2)),
}


@dataclass
class Call:
    """A form of a case on its inputs. Within `context()`, every call computes the outputs, without a graph for the mode
    "forward", followed by the backward pass for the mode "both". A side or batch of 0 is the case's own."""

    case: str
    form: str
    mode: str
    device: str = "cpu"
    dtype: str = "float32"
    side: int = 0
    batch: int = 0
    max_scores: int | None = None

    def __post_init__(self) -> None:
        self.module = CASES[self.case].module(self.device, self.max_scores)
        self.inputs = CASES[self.case].inputs(self.side, self.batch, self.device)
        self.side = self.inputs[0].shape[3]

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        with precision(self.device, getattr(torch, self.dtype)), FORMS[self.form]():
            yield

    def __call__(self) -> Outputs:
        outputs = CASES[self.case].outputs
        if self.mode == "forward":
            with torch.no_grad():
                return outputs(self.module, *self.inputs)
        self.module.zero_grad()
        found = outputs(self.module, self.inputs[0].detach().requires_grad_(), *self.inputs[1:])
        graded = [y for y in found if y.requires_grad]
        torch.autograd.backward(graded, [torch.ones_like(y) for y in graded])
        return found
