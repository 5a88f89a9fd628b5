"""Networks of the study, one folder per paper, built by the folder's name.

A folder ``lib/models/<name>/`` defines `network`, the class, and, if its module can stand in the common trunk,
`attention`: the module's class, or a function from the width and the module's options to a module.

Every network maps images ``(B, colors, H, W)`` in [0, 1] to ``(B, colors, scale*H, scale*W)``, nominally in
[0, 1] and not clamped, for any H and W from the minimum that its docstring gives.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .blocks import CommonTrunk, Network
from .operation import plain as plain


class ModelError(ValueError):
    """A network was asked for by an unknown name, with an unknown option or with a value that it does not take."""


def names() -> list[str]:
    """Every model: the folders of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def build(name: str, *, common_trunk: bool = False, **options) -> Network:
    """Make the network `name`; `options` are the arguments of its constructor.

    With `common_trunk` the network is ``blocks.CommonTrunk``, EDSR's, with `name`'s attention module in its middle;
    then the options of the module go to the module and the others to the trunk.

    Raises ModelError, one line, for an unknown name or option and lists the known ones, and for a value of the wrong
    type or out of range.
    """
    check_options(name, {"common_trunk": common_trunk, **options})
    try:
        if not common_trunk:
            return network_class(name)(**options)
        module = _module(name).attention
        of_module = _parameters(module).keys() - {"width"}
        inner = {key: value for key, value in options.items() if key in of_module}
        outer = {key: value for key, value in options.items() if key not in of_module}
        return CommonTrunk(**outer, attention=lambda width: module(width, **inner))
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"model {name!r}: {error}") from error


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ModelError unless `build` knows the model and every option, and every value has the option's type."""
    known = known_options(name, options.get("common_trunk") is True)
    for key, value in options.items():
        if key not in known:
            raise ModelError(f"unknown option {key!r} of model {name!r}; known: {', '.join(sorted(known))}")
        if not _has_type(value, known[key]):
            raise ModelError(f"option {key!r} of model {name!r} is {value!r}; it must be {_in_words(known[key])}")


def known_options(name: str, common_trunk: bool = False) -> dict[str, Any]:
    """Options of a model with their types, those of the common trunk and of the model's module for ``common_trunk``."""
    if not common_trunk:
        return {"common_trunk": bool, **_parameters(network_class(name))}
    network_class(name)
    module = getattr(_module(name), "attention", None)
    if module is None:
        raise ModelError(f"model {name!r} has no attention module for the common trunk")
    of_trunk = {key: kind for key, kind in _parameters(CommonTrunk).items() if key != "attention"}  # the module itself
    return {"common_trunk": bool, **of_trunk, **_parameters(module)}


def network_class(name: str) -> type[Network]:
    """The class behind a model's name; raises ModelError for an unknown one."""
    if name not in names():
        raise ModelError(f"unknown model {name!r}; known: {', '.join(names())}")
    return _module(name).network


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _parameters(maker: Any) -> dict[str, Any]:
    """The type of every option, that is, parameter with a default; of all in ``maker.options_of`` for ``**more``."""
    types = typing.get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    parameters = inspect.signature(maker).parameters.values()
    known = {p.name: types.get(p.name, Any) for p in parameters if p.default is not p.empty}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = {**_parameters(maker.options_of), **known}
    return known


def _has_type(value: Any, annotation: Any) -> bool:
    try:
        from pydantic import ConfigDict, TypeAdapter, ValidationError
    except ModuleNotFoundError:  # a machine that only runs networks, with PyTorch alone
        return True
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def _in_words(annotation: Any) -> str:
    text = re.sub(r"(\w+\.)+", "", inspect.formatannotation(annotation))
    return re.sub(r"Literal\[(.*?)\]", r"one of \1", text)
