"""Networks with the weights that the papers' authors released.

`load` recognises the network that a released state dict describes by its tensors' names and shapes, builds ours of that
depth, width, scale and number of colours, and fills it. A model's own table is `official.py` in its folder; see
`lib.models.released` for its parts.

Strict: all tensors of the released network must be there, with their shapes, and no others. Not read, but required by
name, are what our networks hold as constants: the smallest norm `escape_NaN` and mean shifts; other values in these
give a warning. Released copies of one tensor must agree: the one slope of a trunk's PReLUs, which the released state
dict lists once per block, PA-EDSR's attention and IGNN's VGG19, each registered under two names.

Files are understood with everything that people's training programs put around and beside the tensors (see `unwrap`);
nothing in a file is ever executed.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import models
from .models.blocks import Network
from .models.released import OfficialError as OfficialError
from .models.released import State, System, substitute

#: Keys under which files hold a state dict, perhaps in one another; averaged weights, the ones to use, first.
WRAPPERS = (
    *("params_ema", "ema", "ema_state_dict", "state_dict_ema", "model_ema", "g_ema"),
    *("params", "state_dict", "model_state_dict", "net_state_dict", "weights", "model", "net", "network", "generator"),
    *("gen", "netG", "net_g", "module"),
)

#: Prefixes that wrapper modules put before every name of the network inside them.
PREFIXES = ("module.", "_orig_mod.", "net.", "network.", "model.", "generator.", "gen.", "netG.", "net_g.")

#: Ends of the names of counters, which no network needs: of batches, of averaged steps, thop's.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")

#: Beginnings of the names of losses' tensors, which lie beside the network's where a training holds both.
LOSSES = ("loss.", "criterion.")

#: First bytes of files that are taken for checkpoints, and what to do about them.
MISTAKEN = {
    bytes(64): "zero bytes, as a broken download leaves: download it again",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run `git lfs pull` where it comes from",
    b"\xef\xbb\xbf<": "a page of HTML or XML, as servers send in place of a file: download the file itself",
    b"<": "a page of HTML or XML, as servers send in place of a file: download the file itself",
    b"\xff\xfe<\0": "a page of HTML or XML, as servers send in place of a file: download the file itself",
    b"{": "a text in JSON, not a checkpoint",
    b"\x1f\x8b": "packed by gzip: unpack it first",
    b"\xfd7zXZ": "packed by xz: unpack it first",
    b"BZh": "packed by bzip2: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it first",
    b"7z\xbc\xaf": "packed by 7-Zip: unpack it first",
    b"Rar!": "packed by RAR: unpack it first",
    b"MATLAB": "a file of MATLAB: read it by scipy.io.loadmat and save a state dict of its arrays by torch.save",
    b"\x93NUMPY": "an array of NumPy, not a state dict: save one of tensors by torch.save",
    b"\x89PNG": "an image, not a checkpoint: name the file of the weights",
    b"\xff\xd8\xff": "an image, not a checkpoint: name the file of the weights",
    b"%PDF": "a document in PDF, not a checkpoint: name the file of the weights",
    b"GGUF": "weights in GGUF, which is for language models: name a file of PyTorch or safetensors",
    b"\x89HDF": "a file of HDF5: read it by h5py and save a state dict of its arrays by torch.save",
}

#: In the first pickle of an old file, its signature.
SIGNATURE = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")

#: Pickles at the beginning of an old file: a signature, a version, the system, the content.
OLD_PICKLES = 4

#: Beginnings of names in old files that PyTorch makes tensors and dictionaries of.
READ = (
    "_codecs.",
    "builtins.set",
    "collections.OrderedDict",
    "torch._utils.",
    "torch._tensor.",
    "torch.nn.parameter.",
    "torch.Size",
)

#: Problems of one kind that an error lists by name.
LISTED = 4


class Foreign:
    """Stands for an object of any class in a file: what it was made of is dropped, and no code of the class is run."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class ForeignDict(Foreign):
    """Stands for a kind of dictionary: one with its content, which takes attributes too."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


class ForeignList(Foreign):
    """Stands for a kind of list: a plain one with its content."""

    def __new__(cls, *args, **kwargs):
        return []


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, without its wrappers; nothing in the file is executed.

    Files of `torch.save`, old and new, and of safetensors, whatever their names. Raises OfficialError, one line that
    names the file, says what it is and what to do, if it is missing or no checkpoint of tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise OfficialError(f"{path}: is a folder; name the checkpoint in it")
    if not path.is_file():
        raise OfficialError(f"{path}: no such file; download the checkpoint or correct `checkpoint`")
    try:
        return unwrap(_content(path))
    except OfficialError as error:
        raise OfficialError(f"{path}: {error}") from None


def _content(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise OfficialError("the file is empty: download it again")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError:
            raise OfficialError("a damaged file of safetensors: download it again") from None
    for signature, kind in MISTAKEN.items():
        if start.lstrip().startswith(signature):
            raise OfficialError(kind)
    if tarfile.is_tarfile(path):
        raise OfficialError("a tar archive: unpack it first")
    if start[:1] == b"\x08" and start[2:3] == b"\x12":  # its version, then who wrote it
        raise OfficialError("a program in ONNX, not a state dict: save the state_dict() of the network it was made of")
    if start.startswith(b"\x80") and SIGNATURE not in start:
        raise OfficialError(
            "a pickle that torch.save did not write: load it where it was made, and torch.save its tensors"
        )
    if start.isascii() and (text := " ".join(start.decode().split())).isprintable():
        raise OfficialError(f"a text ({text!r}), not a checkpoint: download the file itself")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise OfficialError("a TorchScript program, not a state dict: torch.jit.load it and save its state_dict()")
        if names and all(name.endswith(".npy") for name in names):
            raise OfficialError(
                "arrays of NumPy: save a state dict of tensors, torch.from_numpy of each, by torch.save"
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise OfficialError(f"a zip archive ({', '.join(names[:LISTED]) or 'empty'}): unpack it first")
    foreign: list[str] = []
    try:
        foreign += (torch.serialization.get_unsafe_globals_in_checkpoint if zipfile.is_zipfile(path) else _classes)(
            path
        )
        return _loaded(path, dict.fromkeys(foreign, Foreign))
    except Exception:  # torch raises half a dozen kinds, and advises to read the file unsafely
        if foreign:
            raise OfficialError(
                f"damaged, or a pickled object of {listing(foreign)}, not a state dict: download it again, or load it"
                " where that class is and save its state_dict()"
            ) from None
        raise OfficialError("damaged, or no state dict saved by PyTorch: download it again") from None


def _loaded(path: Path, kinds: dict[str, type[Foreign]]) -> object:
    """The content of a checkpoint with stand-ins of these kinds for its classes; of those that turn out to be kinds of
    dictionaries or lists, such as those of EasyDict, the content is kept."""
    stand_ins: list = [(type(name, (kind,), {}), name) for name, kind in kinds.items()]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        filled = re.search(r"Can only (set|append|extend)", str(error), re.IGNORECASE)
        name = next((name for name, kind in kinds.items() if kind is Foreign and f"official.{name}'" in str(error)), "")
        if not filled or not name:
            raise
        return _loaded(path, kinds | {name: ForeignDict if filled[1].lower() == "set" else ForeignList})


def _classes(path: Path) -> list[str]:
    """The classes and functions that the pickles of a file from before PyTorch 1.6 name, those aside that PyTorch reads
    itself; nothing is made of them."""
    with path.open("rb") as file:
        codes = [code for _ in range(OLD_PICKLES) for code in pickletools.genops(file)]
    found = {
        str(given).replace(" ", ".").replace("__builtin__", "builtins")
        for code, given, _ in codes
        if code.name == "GLOBAL"
    }
    return sorted(name for name in found if not name.startswith(READ) and not name.endswith("Storage"))


def unwrap(content: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content.

    It may lie under WRAPPERS' keys, which may lie in one another, beside anything else; its names may all begin with
    PREFIXES; counters, losses, and what is no tensor beside tensors, are dropped. Raises OfficialError if it holds no
    tensors, or others than dense ones of floating numbers.
    """
    try:
        within = _with_tensors(content)
    except RecursionError:
        raise OfficialError("no state dict, but a dict that contains itself: save the state dict alone") from None
    if within is not None:
        content = {name: value for name, value in within.items() if isinstance(value, Tensor)}
    while isinstance(content, Mapping):  # no tensors: down to what an error is about
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping | Foreign)]
        inner = next((value for value in wrapped if isinstance(value, Mapping)), next(iter(wrapped), None))
        if inner is None:
            break
        content = inner
    if isinstance(content, Foreign):
        raise OfficialError(
            f"a pickled {type(content).__name__}, not a state dict: load it where that class is and save"
            " its state_dict()"
        )
    if not isinstance(content, Mapping) or not content:
        raise OfficialError(f"no state dict, but {'an empty one' if content == {} else type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not name.isprintable():
            raise OfficialError(f"no state dict: {name!r} ({type(name).__name__}) is not the name of a tensor")
        if type(value).__name__.startswith("numpy."):
            raise OfficialError(f"no state dict: {name} is of NumPy, not a tensor: save torch.from_numpy of each array")
        if isinstance(value, Foreign) or not isinstance(value, Tensor):
            raise OfficialError(f"no state dict: {name} is {type(value).__name__}, not a tensor")
        if value.is_meta:
            raise OfficialError(f"{name} is on the device meta, without values: save the network after loading it")
    beside = {name for name in content if name.endswith(COUNTERS) or name.startswith(LOSSES)}
    state = {name: value for name, value in content.items() if name not in beside}
    for name, value in state.items():
        if not value.is_floating_point() or value.layout != torch.strided:
            kind = value.dtype if value.layout == torch.strided else value.layout
            raise OfficialError(f"{name} is of {kind}, not of dense floating numbers: save the weights as float32")
    while prefix := next((p for p in PREFIXES if state and all(_is_behind(p, name) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _with_tensors(content: object) -> Mapping | None:
    """The mapping that has tensors, behind the first of WRAPPERS' keys that leads to one."""
    if not isinstance(content, Mapping):
        return None
    within = (found for key in WRAPPERS if (found := _with_tensors(content.get(key))) is not None)
    return next(within, content if any(isinstance(value, Tensor) for value in content.values()) else None)


def _is_behind(prefix: str, name: str) -> bool:
    """Whether `prefix` was put before a network's name of a tensor; a bare number is a layer's index, not a name."""
    return name.startswith(prefix) and not name[len(prefix) : len(prefix) + 1].isdigit()


def systems(model: str | None = None) -> dict[str, tuple[str, System]]:
    """The released networks by name, each with the name of our model, of one model or of all."""
    found = {}
    for name in models.names() if model is None else [model]:
        if name in models.names() and importlib.util.find_spec(f"lib.models.{name}.official"):
            table = importlib.import_module(f"lib.models.{name}.official").SYSTEMS
            found.update({system: (name, entry) for system, entry in table.items()})
    return found


def load(system: str, state_dict: Mapping, **more) -> Network:
    """Our network with the released weights, in eval mode.

    `state_dict` is that of a network of `system`, one of `systems()`, wrapped or not (see `unwrap`); `more` are options
    of ours that it leaves open (CARN-M's scale). Raises OfficialError, one line, for an unknown system and for tensors
    that are missing, unexpected, of the wrong shape, or that differ where the network has one; it names them as the
    released code does.
    """
    model, options, tensors = translate(system, state_dict, **more)
    with torch.random.fork_rng(devices=[]):  # the initialisation that is replaced here draws numbers
        network = models.build(model, **options)
    network.load_state_dict(tensors)
    return network.eval()


def load_file(path: str | Path, model: str, colors: int, scale: int = 1) -> Network:
    """The network `model` of `lib.models` with the released weights in a file, in eval mode.

    Raises OfficialError as `read` and `load`, and where the file's network has other colours or another scale.
    """
    fitting = {name: entry for name, (_, entry) in systems(model).items() if scale in entry.scales}
    if not fitting:
        known = ", ".join(f"{of} x{'/'.join(map(str, entry.scales))}" for of, entry in systems().values())
        raise OfficialError(f"{path}: there are no released weights of model {model!r} x{scale}; known: {known}")
    state = read(path)
    (system, entry), *_ = fitting.items()
    try:
        described = entry.options(state)
        for option, wanted in (("colors", colors), ("scale", scale)):
            if described.get(option, wanted) != wanted:
                raise OfficialError(f"made for {option} {described[option]}, but the task has {option} {wanted}")
        return load(system, state, **({"scale": scale} if scale != 1 and "scale" not in described else {}))
    except OfficialError as error:
        raise OfficialError(f"{path}: {error}") from None


def translate(system: str, state_dict: Mapping, **more) -> tuple[str, dict, dict[str, Tensor]]:
    """Name and options of our network in `lib.models`, and its state dict, from a released one; raises as `load`."""
    known = systems()
    if system not in known:
        raise OfficialError(f"unknown system {system!r}; known: {', '.join(known)}")
    (model, entry), state = known[system], unwrap(state_dict)
    try:
        options = {**entry.options(state), **more}
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # as in `load`
            network = models.build(model, **options)
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
        check_finite(state, sources)
        check_ties(state, [*copies, *tied(network, sources)])
    except (OfficialError, models.ModelError) as error:
        raise OfficialError(f"{system}: {error}") from None
    changed = [name for name, value in constants.items() if not value.is_meta and not agree(state[name], value)]
    if changed:
        warnings.warn(f"{system}: {listing(changed)} not read; our network has other constants", stacklevel=3)
    tensors = {name: joined([state[source] for source in several], own[name]) for name, several in sources.items()}
    return model, options, tensors


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


def check_finite(state: State, sources: Mapping[str, list[str]]) -> None:
    """Raise OfficialError unless all numbers of the tensors that are read are finite."""
    read = dict.fromkeys(name for several in sources.values() for name in several)
    if broken := [name for name in read if not state[name].float().isfinite().all()]:
        raise OfficialError(f"NaN or infinite numbers: {listing(broken)}; the training failed, take another checkpoint")


def check_ties(state: State, pairs: Iterable[tuple[str, str]]) -> None:
    """Raise OfficialError unless the tensors of every pair of names are equal."""
    different = [f"{one} and {other}" for one, other in pairs if not torch.equal(state[one], state[other])]
    if different:
        raise OfficialError(f"one tensor in the network, but different values: {listing(different)}")


def tied(network: torch.nn.Module, sources: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Pairs of released names whose tensors are one parameter of ours."""
    first: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for name, parameter in network.named_parameters(remove_duplicate=False):
        leader = first.setdefault(id(parameter), name)
        if leader != name:
            pairs += zip(sources[leader], sources[name], strict=True)
    return pairs


def joined(parts: list[Tensor], own: Tensor) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(own.shape)


def agree(value: Tensor, constant: Tensor) -> bool:
    """Whether they are equal up to the rounding of the file's numbers."""
    rounding = max(1e-4, torch.finfo(value.dtype).eps) if value.is_floating_point() else 0
    return torch.allclose(value.float(), constant, rtol=rounding, atol=1e-6)


def listing(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
