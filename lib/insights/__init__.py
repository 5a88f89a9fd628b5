"""What reports show of a trained network: mechanisms, the influence of pixels, whether the attention acts.

No network imports this package; editing it retrains nothing. A file named like a model holds the parts of that model:

    mechanism(network, image, points) -> dict[str, Tensor]    tensors for the report, documented there
    weights(module, x, queries) -> Tensor                     see `weights`
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..models.blocks import Attention, CommonTrunk, NonLocal
from .influence import influence


def attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a network by their names in it, in the order of its layers."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Attention)}


@contextlib.contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collects (module, its input) at every call of one of the modules."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [m.register_forward_pre_hook(lambda module, args: calls.append((module, args[0]))) for m in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def attended(network: nn.Module, image: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The attention modules, each with the features ``(B, width, H, W)`` that it gets for an image."""
    with torch.no_grad(), recorded(list(attentions(network).values())) as calls:
        network(image)
    return calls


def mechanism(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """What a report shows of the attention on one image ``(1, colors, H, W)``, by the file of the network's model.

    `points` are (row, column) on the network's input grid. In the common trunk, where modules of all models are
    compared, it is influence: (points, H, W). Empty for a network without attention.
    """
    if isinstance(network, CommonTrunk):
        with torch.no_grad():
            calls = network.attended(image)
        return {"influence": influence(*calls[0], points)} if calls else {}
    if (shown := _of_model(network, "mechanism")) is not None:
        return shown(network, image, points)
    return network.mechanism(image, points) if hasattr(network, "mechanism") else {}


def weights(module: nn.Module, x: Tensor, queries: Tensor | None = None) -> Tensor | None:
    """Attention weights ``(heads, Q, keys)`` of an attention module on its features x ``(1, width, H, W)``.

    queries: flat indices of queries, None for all
    Rows sum to 1, or to less where the paper's do. None for a module that has no weights.
    """
    if isinstance(module, NonLocal):
        return _non_local_weights(module, x, queries)
    found = _of_model(module, "weights")
    return found(module, x, queries) if found is not None else None


@torch.no_grad()
def _non_local_weights(module: NonLocal, x: Tensor, queries: Tensor | None) -> Tensor:
    q, k = (layer(x)[0].flatten(1).unflatten(0, (module.heads, -1)).mT for layer in (module.query, module.key))
    return ((q if queries is None else q[:, queries]) @ k.mT).softmax(2)


def _of_model(module: nn.Module, function: str) -> Callable | None:
    """The function of the file in this package that is named like the model a module belongs to."""
    parts = type(module).__module__.split(".")
    if parts[:2] != ["lib", "models"] or importlib.util.find_spec(f"{__name__}.{parts[2]}") is None:
        return None
    return getattr(importlib.import_module(f"{__name__}.{parts[2]}"), function, None)
