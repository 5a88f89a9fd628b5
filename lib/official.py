"""Networks with the weights that the papers' authors released.

`load` recognises the network that a released state dict describes by its tensors' names and shapes, builds ours of that
depth, width, scale and number of colours, and fills it. A system's entry in `SYSTEMS` says, as substitutions on *our*
names, which released tensors make which of ours; released tensors that ours stacks are concatenated along their first
axis. Names and shapes are those of the released code.

Strict: all tensors of the released network must be there, with their shapes, and no others. Not read, but required by
name, are what our networks hold as constants: the smallest norm `escape_NaN` and mean shifts; other values in these
give a warning. Released copies of one tensor must agree: the one slope of a trunk's PReLUs, which the released state
dict lists once per block, PA-EDSR's attention and IGNN's VGG19, each registered under two names.
"""

from __future__ import annotations

import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import models
from .models.blocks import DIV2K_MEAN, Network
from .models.lir import OPERATORS
from .models.panet import SMALLEST_NORM

State = Mapping[str, Tensor]
Substitutions = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

#: Keys under which checkpoint files hold the state dict: LIR's (averaged weights), IGNN's.
WRAPPERS = ("params_ema", "net_state_dict")

#: Problems of one kind that an error lists by name.
LISTED = 4


class OfficialError(ValueError):
    """A file is no checkpoint, or its tensors are not those of the system's network."""


@dataclass(frozen=True)
class System:
    """How a released network's tensors become ours.

    model: name of our network in `lib.models`
    scales: that checkpoints exist for, or could
    options: options of our network, from a state dict
    names: substitutions that, one after the other, make the released name of ours
    stacked: placeholders in a name so made, with what stands for them, the first varying slowest
    flat: parts of names of layers on flattened patches, (channel, row, column), where ours convolves
    copies: substitutions that make the second name of a tensor registered twice
    constants: released tensors that our network holds as constants, from the options; on "meta" where the value is free
    optional: whether a tensor may be there besides
    """

    model: str
    scales: tuple[int, ...]
    options: Callable[[State], dict]
    names: Substitutions = ()
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flat: tuple[str, ...] = ()
    copies: Substitutions = ()
    constants: Callable[[dict], dict[str, Tensor]] = lambda options: {}
    optional: Callable[[str, Tensor, dict], bool] = lambda name, tensor, options: False

    def sources(self, name: str) -> list[str]:
        """The released tensors that make our tensor `name`."""
        found = [substitute(self.names, name)]
        for placeholder, values in self.stacked.items():
            if placeholder in found[0]:
                found = [source.replace(placeholder, value) for source in found for value in values]
        return found

    def source_shape(self, source: str, own: Tensor, count: int) -> tuple[int, ...]:
        """Shape of one of `count` released tensors that make our tensor `own`."""
        shape = (own.shape[0] // count, *own.shape[1:])
        is_flat = len(shape) > 1 and any(part in source for part in self.flat)
        return (shape[0], math.prod(shape[1:])) if is_flat else shape


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, without its wrappers; nothing in the file is executed.

    Raises OfficialError, one line that names the file, if it is missing or not a checkpoint of tensors.
    """
    if not Path(path).is_file():
        raise OfficialError(f"{path}: no such file; download the checkpoint or correct `official`")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen kinds, and advises to read the file unsafely
        raise OfficialError(
            f"{path}: damaged, or no PyTorch checkpoint of tensors and numbers alone; download it again"
        ) from None
    try:
        return unwrap(content)
    except OfficialError as error:
        raise OfficialError(f"{path}: {error}") from None


def unwrap(content: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: from under a wrapper's key, without DataParallel's ``module.``.

    Raises OfficialError if it holds anything but tensors.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise OfficialError(f"no state dict, but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise OfficialError(f"no state dict: {name} is {type(value).__name__}, not a tensor")
    parallel = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if parallel else name: value for name, value in content.items()}


def load(system: str, state_dict: Mapping) -> Network:
    """Our network with the released weights, in eval mode.

    `state_dict` is that of a network of `system`, one of SYSTEMS, wrapped or not (see `unwrap`). Raises OfficialError,
    one line, for an unknown system and for tensors that are missing, unexpected, of the wrong shape, or that differ
    where the network has one; it names them as the released code does.
    """
    model, options, tensors = translate(system, state_dict)
    with torch.random.fork_rng(devices=[]):  # the initialisation that is replaced here draws numbers
        network = models.build(model, **options)
    network.load_state_dict(tensors)
    return network.eval()


def load_file(path: str | Path, model: str, colors: int, scale: int = 1) -> Network:
    """The network `model` of `lib.models` with the released weights in a file, in eval mode.

    Raises OfficialError as `read` and `load`, and where the file's network has other colours or another scale.
    """
    systems = [name for name, entry in SYSTEMS.items() if entry.model == model and scale in entry.scales]
    if not systems:
        known = ", ".join(f"{entry.model} x{'/'.join(map(str, entry.scales))}" for entry in SYSTEMS.values())
        raise OfficialError(f"{path}: there are no released weights of model {model!r} x{scale}; known: {known}")
    state = read(path)
    try:
        described = SYSTEMS[systems[0]].options(state)
        for option, wanted in (("colors", colors), ("scale", scale)):
            if described.get(option, wanted) != wanted:
                raise OfficialError(f"made for {option} {described[option]}, but the task has {option} {wanted}")
        return load(systems[0], state)
    except OfficialError as error:
        raise OfficialError(f"{path}: {error}") from None


def translate(system: str, state_dict: Mapping) -> tuple[str, dict, dict[str, Tensor]]:
    """Name and options of our network in `lib.models`, and its state dict, from a released one; raises as `load`."""
    if system not in SYSTEMS:
        raise OfficialError(f"unknown system {system!r}; known: {', '.join(SYSTEMS)}")
    entry, state = SYSTEMS[system], unwrap(state_dict)
    try:
        options = entry.options(state)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # as in `load`
            network = models.build(entry.model, **options)
        own = network.state_dict()
        sources = {name: entry.sources(name) for name in own}
        constants = entry.constants(options)
        copies = [
            (source, substitute(entry.copies, source))
            for source in (source for several in sources.values() for source in several)
            if substitute(entry.copies, source) != source
        ]
        shapes = {name: tuple(value.shape) for name, value in constants.items()}
        for name, several in sources.items():
            shapes.update((source, entry.source_shape(source, own[name], len(several))) for source in several)
        shapes.update((copy, shapes[source]) for source, copy in copies)
        check_tensors(state, shapes, lambda name: entry.optional(name, state[name], options))
        check_ties(state, [*copies, *tied(network, sources)])
    except OfficialError as error:
        raise OfficialError(f"{system}: {error}") from None
    changed = [name for name, value in constants.items() if not value.is_meta and not agree(state[name], value)]
    if changed:
        warnings.warn(f"{system}: {listing(changed)} not read; our network has other constants", stacklevel=3)
    tensors = {name: joined([state[source] for source in several], own[name]) for name, several in sources.items()}
    return entry.model, options, tensors


def check_tensors(state: State, shapes: Mapping[str, tuple[int, ...]], optional: Callable[[str], bool]) -> None:
    """Raise OfficialError unless `state` has tensors of these names and shapes, and no others but optional ones."""
    problems = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes and not optional(name)],
        "misshaped": [
            f"{name} {tuple(state[name].shape)}, expected {shape}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    found = [f"{kind}: {listing(names)}" for kind, names in problems.items() if names]
    if found:
        raise OfficialError("; ".join(found))


def check_ties(state: State, pairs: Iterable[tuple[str, str]]) -> None:
    """Raise OfficialError unless the tensors of every pair of names are equal."""
    different = [f"{one} and {other}" for one, other in pairs if not torch.equal(state[one], state[other])]
    if different:
        raise OfficialError(f"one tensor in the network, but different values: {listing(different)}")


def tied(network: torch.nn.Module, sources: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Pairs of released names whose tensors are one parameter of ours."""
    first: dict[int, str] = {}
    pairs = []
    for name, parameter in network.named_parameters(remove_duplicate=False):
        leader = first.setdefault(id(parameter), name)
        if leader != name:
            pairs += zip(sources[leader], sources[name], strict=True)
    return pairs


def joined(parts: list[Tensor], own: Tensor) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(own.shape)


def agree(value: Tensor, constant: Tensor) -> bool:
    return torch.allclose(value.float(), constant, rtol=1e-4, atol=1e-6)


def listing(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def substitute(substitutions: Substitutions, name: str) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def renumbered(template: str, number: Callable[[int], int]) -> Callable[[re.Match], str]:
    """Replacement by `template`, its % the matched number through `number`."""
    return lambda match: template.replace("%", str(number(int(match[1]))))


def from_one(template: str) -> Callable[[re.Match], str]:
    """Replacement where the released code counts from one."""
    return renumbered(template, lambda index: index + 1)


def without_activations(template: str) -> Callable[[re.Match], str]:
    """Replacement where the released code does not count the activations between layers."""
    return renumbered(template, lambda index: index // 2)


# What a state dict describes. A size is what most of the tensors that have it say, a number of blocks is that of the
# consecutive ones from 0: so a tensor that is missing, misshaped or too much is named, not taken at its word.


def size(state: State, *axes: tuple[str, int]) -> int:
    """The most frequent length of axes of tensors."""
    lengths = [state[name].shape[axis] for name, axis in axes if name in state and axis < state[name].ndim]
    if not lengths:
        raise OfficialError(f"missing: {', '.join(dict.fromkeys(name for name, _ in axes))}")
    return statistics.mode(lengths)


def count(state: State, prefix: str, step: int = 1) -> int:
    """Number of consecutive indices after `prefix`, in steps of `step`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    indices = {int(match[1]) // step for match in map(pattern.match, state) if match}
    return next(i for i in range(len(indices) + 1) if i not in indices)


def upsampling(state: State, layer: str, width: int) -> int:
    """The factor of one sub-pixel convolution."""
    for name in (f"{layer}.bias", f"{layer}.weight"):
        for factor in (2, 3):
            if name in state and state[name].shape[:1] == (factor**2 * width,):
                return factor
    if f"{layer}.weight" not in state:
        raise OfficialError(f"missing: {layer}.weight")
    shape = tuple(state[f"{layer}.weight"].shape)
    raise OfficialError(f"misshaped: {layer}.weight {shape}, expected 4 or 9 times {width} outputs")


def sizes(state: State, tail: str) -> dict:
    """Colours and width of a trunk, from its first and last layers."""
    return {
        "colors": size(state, ("head.0.weight", 1), (f"{tail}.bias", 0), (f"{tail}.weight", 0)),
        "width": size(state, ("head.0.bias", 0), ("head.0.weight", 0), (f"{tail}.weight", 1)),
    }


def plain_options(state: State) -> dict:
    """Trunk at the input's size; besides its residual blocks it has one attention module and one convolution."""
    return {**sizes(state, "tail.0"), "blocks": max(0, count(state, "body.") - 2)}


def enlarging_options(state: State) -> dict:
    """EDSR's trunk with upsampler, otherwise as `plain_options`."""
    found = sizes(state, "tail.1")
    twice = any(name.startswith("tail.0.2.") for name in state)
    scale = 4 if twice else upsampling(state, "tail.0.0", found["width"])
    return {**found, "scale": scale, "blocks": max(0, count(state, "body.") - 2)}


def enlcn_options(state: State) -> dict:
    """One module before the first and after every 8th residual block, one convolution after them."""
    found = enlarging_options(state)
    return {**found, "blocks": found["blocks"] - found["blocks"] // 9}


def ignn_options(state: State) -> dict:
    twice = any(name.startswith("tail.1.") for name in state)
    found = sizes(state, "tail.1.0" if twice else "tail.0.0")
    graph_scale = upsampling(state, "upsample.0", found["width"])
    blocks = count(state, "body1.") + max(0, count(state, "body2.") - 1)
    return {**found, "scale": 4 if twice else graph_scale, "blocks": blocks}


def lir_options(state: State) -> dict:
    return {
        "colors": size(state, ("Conv_head.conv.weight", 1), ("Conv_tail.conv.weight", 0), ("transpose2.weight", 1)),
        "width": size(state, ("Conv_head.conv.weight", 0), ("Conv_tail.conv.weight", 1), ("transpose2.weight", 0)),
        "blocks": tuple(count(state, f"EAA{level}.") for level in range(1, 6)),
    }


def dncnn_options(state: State) -> dict:
    depth = max(1, count(state, "model.", step=2))
    last = f"model.{2 * depth - 2}"
    return {
        "colors": size(state, ("model.0.weight", 1), (f"{last}.bias", 0), (f"{last}.weight", 0)),
        "width": size(state, ("model.0.bias", 0), ("model.0.weight", 0), (f"{last}.weight", 1)),
        "depth": depth,
    }


# Released tensors that our networks hold as constants.


def shifts(value_range: float) -> dict[str, Tensor]:
    """The mean shifts of a network on colours in [0, value_range]."""
    mean = value_range * torch.tensor(DIV2K_MEAN)
    eye = torch.eye(3).view(3, 3, 1, 1)
    return {"sub_mean.weight": eye, "sub_mean.bias": -mean, "add_mean.weight": eye, "add_mean.bias": mean}


def smallest_norms(*modules: str) -> Callable[[dict], dict[str, Tensor]]:
    """PyramidAttention's, in modules of these names, {0} the index of the one in the trunk."""
    return lambda options: {
        f"{module.format(options['blocks'] // 2)}.escape_NaN": torch.tensor([SMALLEST_NORM]) for module in modules
    }


def vgg_shifts() -> dict[str, Tensor]:
    """IGNN's shift to ImageNet's colours, registered twice; how it is written into weight and bias is left open."""
    shapes = {"weight": (3, 3, 1, 1), "bias": (3,)}
    return {
        f"{module}.sub_mean.{key}": torch.empty(shape, device="meta")
        for module in ("vggnet", "graph.embedcnn")
        for key, shape in shapes.items()
    }


#: Names of LIR's fixed operators.
OPERATOR_NAMES = ("Sobel_x", "Sobel_y", "Laplacian", "Edge", "Sobel_xy", "Sobel_yx", "Roberts_x", "Roberts_y")


def is_fixed_operator(name: str, tensor: Tensor, options: dict) -> bool:
    """Whether a tensor is a fixed operator of an adaptive filter, which files written on a CPU hold for each channel.

    Known by the operators' names, or, under another name, by an operator's values up to their scale.
    """
    place = re.fullmatch(r"EAA[1-5]\.\d+\.stage([2-5])\.0\.(\w+)", name)
    if not place or tuple(tensor.shape) != (options["width"] * (2 if place[1] == "5" else 1), 1, 3, 3):
        return False
    kernels = [torch.tensor(operator, dtype=torch.float32) for operator in OPERATORS]
    scaled = tensor.float() / tensor.abs().max()
    return place[2] in OPERATOR_NAMES or any(
        torch.allclose(scaled, (kernel / kernel.abs().max()).expand_as(scaled), atol=1e-6) for kernel in kernels
    )


#: Numbers that a file may hold beside the tensors (IGNN's best PSNR); reading them runs no code of the file's.
NUMPY_SCALAR = np.float64().__reduce__()[0]
NUMPY_SCALARS = [
    NUMPY_SCALAR,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]

FIRST_AND_LAST = (r"^(head|tail)\.", r"\1.0.")
WITH_UPSAMPLER = ((r"^head\.", "head.0."), (r"^tail\.", "tail.1."), (r"^upsampler\.", "tail.0."))
PYRAMID = ((r"\.theta\.", ".conv_match_L_base."), (r"\.g\.", ".conv_match."), (r"\.f\.", ".conv_assembly."))

SYSTEMS = {
    "dagl": System(
        model="dagl",
        scales=(1,),
        options=plain_options,
        names=(
            FIRST_AND_LAST,
            (r"\.stages\.(\d+)\.fuse\.", from_one(".c%_c.")),
            (r"\.stages\.(\d+)\.", from_one(".c%_HEAD.")),
            (r"\.blocks\.(\d+)\.", from_one(".RBS%.")),
            (r"\.edge\.", ".g."),
            (r"\.node\.", ".theta."),
            (r"\.query\.", ".fc1.0."),
            (r"\.key\.", ".fc2.0."),
            (r"\.threshold\.", ".LIMIT_conv."),  # gamma, beta
            (r"\.unused\.", ".W."),
        ),
        stacked={"LIMIT": ("thr", "bias"), "HEAD": ("1", "2", "3", "4")},
        flat=(".fc1.", ".fc2."),
    ),
    "panet": System(
        model="panet",
        scales=(1,),
        options=plain_options,
        names=(FIRST_AND_LAST, *PYRAMID),
        constants=smallest_norms("body.{0}"),
    ),
    "pa_edsr": System(
        model="panet",
        scales=(2, 3, 4),
        options=enlarging_options,
        names=(*WITH_UPSAMPLER, *PYRAMID),
        copies=((r"^body\.\d+\.conv_", "msa.conv_"),),
        constants=lambda options: {**shifts(1), **smallest_norms("body.{0}", "msa")(options)},
    ),
    "enlcn": System(
        model="enlca",
        scales=(2, 3, 4),
        options=enlcn_options,
        names=(
            *WITH_UPSAMPLER,
            (r"\.theta\.", ".conv_match1.0."),
            (r"\.g\.", ".conv_match2.0."),
            (r"\.f\.", ".conv_assembly.0."),
            (r"\.projection_matrix$", ".attn_fn.projection_matrix"),
        ),
        constants=lambda options: shifts(1),
    ),
    "ignn": System(
        model="ignn",
        scales=(2, 3, 4),
        options=ignn_options,
        names=(
            (r"^head\.", "head.0."),
            (r"^tail\.(\d+)\.", without_activations("tail.%.0.")),  # what lies between is the upsampler's shuffling
            (r"^upsampler\.", "upsample."),
            (r"^body2\.(\d+)\.(?=weight|bias)", r"body2.\1.0."),
            (r"^embedding\.conv1\.", "vggnet.model.0."),
            (r"^embedding\.conv2\.", "vggnet.model.2."),
            (r"^fuse_lr\.(\d)\.", without_activations("fuse_b.%.0.")),
            (r"^fuse_hr\.(\d)\.", without_activations("fuse_up.%.0.")),
            (r"^aggregation\.den\.(\d)\.", without_activations("gcn.knn_downsample.%.0.")),
            (r"^aggregation\.edges_(lr|hr)\.(\d)\.(?=weight|bias)", r"gcn.weightnet_\1.\2.0."),
            (r"^aggregation\.edges_(lr|hr)\.1\.body\.", r"gcn.weightnet_\1.1.body."),
        ),
        copies=((r"^vggnet\.", "graph.embedcnn."),),
        constants=lambda options: {**shifts(255), **vgg_shifts()},
    ),
    "lir": System(
        model="lir",
        scales=(1,),
        options=lir_options,
        names=(
            (r"^down\.(\d)\.", from_one("downsample%.")),
            (r"^up\.(\d)\.", from_one("upsample%.")),
            (r"^levels\.(\d)\.", from_one("EAA%.")),
            (r"^(head|tail)\.", r"Conv_\1."),
            (r"^fuse\.", "down."),
            (r"^(Conv_head|Conv_tail|down)\.0\.", r"\1.conv."),
            (r"^(Conv_head|Conv_tail|down)\.1\.", r"\1.act."),
            (r"^feature_degradation\.", "transpose1."),
            (r"^image_degradation\.", "transpose2."),
            (r"\.degradation\.", ".transpose."),
            (r"block\.norm\.", "block.layernorm."),
            (r"\.block\.", ".resblock."),
            (r"\.channel_block\.", ".rescablock."),
            (r"\.expand\.", ".conv_1."),
            (r"\.depthwise\.", ".conv_2."),
            (r"\.reduce\.", ".conv_3."),
            (r"\.attention\.squeeze\.", ".ca.attention.1."),
            (r"\.attention\.excite\.", ".ca.attention.3."),
            (r"\.patch_attention\.", ".pa."),
            (r"\.gate\.", ".sg."),
        ),
        optional=is_fixed_operator,
    ),
    "dncnn": System(model="dncnn", scales=(1,), options=dncnn_options),
}
