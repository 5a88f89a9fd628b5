"""Views of a trained network for reports: mechanisms, the influence of pixels, whether its attention acts.

No network imports this package; editing it retrains nothing. A file named like a model holds the parts of that model:

    mechanism(network, image, points) -> dict[str, Tensor]    tensors for the report, documented there
    weights(module, x, queries, *others) -> Tensor            see `weights`
    query_count(module, x) -> int                             number of queries, where it is not that of the pixels
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.blocks import Attention
from .influence import influence

__all__ = ["attended", "attentions", "influence", "mechanism", "query_count", "weights"]


def attentions(network: nn.Module) -> dict[str, Attention]:
    """The attention modules of a network by their names in it, in the order of its layers, none inside another."""
    found: dict[str, Attention] = {}
    for name, module in network.named_modules():
        if isinstance(module, Attention) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def attended(network: nn.Module, image: Tensor) -> list[tuple[Attention, Tensor]]:
    """The attention modules, each with the features ``(B, width, H, W)`` that it gets for an image."""
    calls: list[tuple[Attention, Tensor]] = []
    with (
        torch.no_grad(),
        hooked(attentions(network), lambda name, module, inputs, y: calls.append((module, inputs[0]))),
    ):
        network(image)
    return calls


@contextlib.contextmanager
def hooked(modules: Mapping[str, Attention], call: Callable[[str, Attention, tuple, Any], None]) -> Iterator[None]:
    """Within, `call` gets name, module, inputs and output of every call of the modules."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: call(name, module, inputs, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mechanism(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The attention on one image ``(1, colors, H, W)`` as a report shows it, by the file of the network's model.

    `points` are (row, column) on the network's input grid. Empty for a network without attention.
    """
    shown = _of_model(network, "mechanism")
    return shown(network, image, points) if shown else {}


def weights(module: Attention, x: Tensor, queries: Tensor | None = None, *others: Tensor) -> Tensor | None:
    """Attention weights ``(heads, Q, keys)`` of an attention module on its features x ``(1, width, H, W)``.

    queries: flat indices of queries, None for all
    others: the further inputs of the module
    Rows sum to 1, or to less where the paper's do. None for a module that has no weights.
    """
    found = _of_model(module, "weights")
    return found(module, x, queries, *others) if found else None


def query_count(module: Attention, x: Tensor) -> int:
    """Number of the module's queries on features ``(1, width, H, W)``: its pixels, unless its model's file counts."""
    found = _of_model(module, "query_count")
    return found(module, x) if found else x.shape[2] * x.shape[3]


def _of_model(module: nn.Module, function: str) -> Callable | None:
    """The function of the file in this package that is named like the model which a module, or its base, belongs to."""
    for ancestor in type(module).__mro__:
        package, _, path = ancestor.__module__.partition(".models.")
        name = f"{__name__}.{path.partition('.')[0]}"
        if package == "lib" and importlib.util.find_spec(name):
            found = getattr(importlib.import_module(name), function, None)
            if found:
                return found
    return None
