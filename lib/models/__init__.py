"""Networks of the study, one file per paper, built by name.

Every network maps images ``(B, colors, H, W)`` in [0, 1] to ``(B, colors, scale*H, scale*W)``, nominally in
[0, 1] and not clamped, for any H and W from the minimum that its docstring gives.
"""

from __future__ import annotations

import importlib
import inspect

from torch import nn

from .blocks import CommonTrunk

#: name -> class in the file of that name
NETWORKS = {
    "bicubic": "Bicubic",
    "bm3d": "BM3D",
    "dagl": "DAGL",
    "dncnn": "DnCNN",
    "edsr": "EDSR",
    "enlca": "ENLCN",
    "ignn": "IGNN",
    "input": "Input",
    "lir": "LIR",
    "nlm": "NLM",
    "panet": "PANet",
}


class ModelError(ValueError):
    """A network was asked for by an unknown name or with an unknown option."""


def build(name: str, *, common_trunk: bool = False, **options) -> nn.Module:
    """Make the network `name`; `options` are the arguments of its constructor.

    With `common_trunk` the network is ``blocks.CommonTrunk``, EDSR's, with `name`'s attention module in its middle,
    made by the ``attention`` function of `name`'s file: then options that the trunk does not know go to the module.

    Raises ModelError for an unknown name or option and lists the known ones.
    """
    of_module = check_options(name, {"common_trunk": common_trunk, **options})
    if not common_trunk:
        return network_class(name)(**options)
    inner = {key: value for key, value in options.items() if key in of_module}
    outer = {key: value for key, value in options.items() if key not in of_module}
    return CommonTrunk(**outer, attention=lambda width: _module(name).attention(width, **inner))


def check_options(name: str, options: dict) -> set[str]:
    """Raise ModelError unless `build` knows the model and every option; returns those of the inserted module."""
    network, of_module = network_class(name), set()
    if options.get("common_trunk"):
        attention = getattr(_module(name), "attention", None)
        if attention is None:
            raise ModelError(f"model {name!r} has no attention module for the common trunk")
        of_module = _arguments(attention) - {"width"}
        network = CommonTrunk
    of_network = _arguments(network) - ({"attention"} if of_module else set())
    for key in options:
        if key not in of_network | of_module | {"common_trunk"}:
            known = ", ".join(sorted(of_network | of_module))
            raise ModelError(f"unknown option {key!r} of model {name!r}; known: {known}")
    return of_module


def network_class(name: str) -> type[nn.Module]:
    """The class behind a model name; raises ModelError for an unknown one."""
    if name not in NETWORKS:
        raise ModelError(f"unknown model {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return getattr(_module(name), NETWORKS[name])


def _module(name: str):
    return importlib.import_module(f"lib.models.{name}")


def _arguments(callable_) -> set[str]:
    return set(inspect.signature(callable_).parameters)
