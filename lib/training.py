"""Training: crops, loss, optimiser, schedule, averaged weights, exact resume.

A step depends on the seed and its own number only, so that a run that was killed and started again from a checkpoint
ends with the same weights as one that was not (bit-exact on CPU).
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .models.blocks import Attention, Network
from .params import Budget, Recipe
from .params.schema import Cosine, Step
from .tasks.degradations import Degradation

LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}
OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

#: Number of rows in a training log; the terminal shows progress more often.
LOG_ROWS = 40

#: The averaged weights are measured on the validation photographs after steps / 2^k steps for k up to this.
HALVINGS = 6

#: Number of validation photographs that are restored at a time.
VALIDATED_AT_ONCE = 8

#: The smallest mean squared error that counts: an exact restoration has 100 dB, as in the reports' means.
LEAST_ERROR = 1e-10

#: Type in which convolutions and matrix products compute, by the profile's `precision`; weights stay float32.
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


class TrainingError(RuntimeError):
    """Training cannot go on: the message says why and what to do."""


class Crops:
    """Random aligned crops of a set of images, drawn and flipped by one gather each for the input and the target.

    targets: uint8 images ``(C, H, W)``; inputs: their degraded versions, uint8 or float32 in [0, 1], or None where the
    degradation is drawn anew for each crop. All pixels live in one flat tensor on `device`; besides it,
    only one of the iterated images is in memory at a time.
    crop: side of a crop of the target; the input's is crop / scale.
    """

    def __init__(
        self,
        targets: Iterable[Tensor],
        inputs: Iterable[Tensor] | None,
        degradation: Degradation,
        crop: int,
        device: torch.device | str = "cpu",
    ):
        self.degradation, self.device = degradation, device
        self.scale = degradation.scale
        if crop % self.scale:
            raise TrainingError(f"crop {crop} is not a multiple of the scale {self.scale}")
        self.side = crop // self.scale
        self.targets = _Flat(targets, device)
        shapes = self.targets.shapes
        small = [tuple(shape[1:]) for shape in shapes.tolist() if min(shape[1:]) < crop]
        if small:
            raise TrainingError(f"a training image of {small[0]} pixels is smaller than the crop {crop}")
        self.colors = self.targets.colors
        self.sizes = shapes[:, 1:] // self.scale  # in input pixels
        self.inputs = _Flat(inputs, device) if inputs is not None else None
        if self.inputs and not torch.equal(self.inputs.shapes[:, 1:], self.sizes):
            raise TrainingError(f"degraded training images must have 1/{self.scale} of the sides of their targets")

    def to(self, device: torch.device) -> Crops:
        """The same crops, drawn on another device."""
        moved = copy.copy(self)
        moved.device = device
        moved.targets = self.targets.to(device)
        moved.inputs = self.inputs and self.inputs.to(device)
        return moved

    def draw(self, batch: int, seed: int, step: int, part: int = 1) -> tuple[Tensor, Tensor]:
        """Degraded and clean crops ``(batch, C, h, w)``, float32 in [0, 1], of training step `step`.

        `part`: as many pixels in crops whose sides are this many times smaller, ``(batch * part², C, h / part, ..)``.
        """
        batch, side = batch * part**2, self.side // part
        generator = _generator(seed, step, "crops")
        image = torch.randint(len(self.sizes), (batch,), generator=generator)
        room = self.sizes[image] - side + 1
        corner = (torch.rand(batch, 2, generator=generator) * room).long()
        flips = torch.rand(batch, 3, generator=generator) < 0.5  # rows, columns, transpose
        if self.inputs is not None and self.degradation.period > 1:  # a given mosaic: its pattern stays in phase
            corner -= corner % self.degradation.period
            flips[:, :2] = False
        target = self.targets.gather(image, corner * self.scale, flips, side * self.scale)
        if self.inputs is not None:
            return self.inputs.gather(image, corner, flips, side), target
        noise = _generator(seed, step, "degradation", self.device)
        return self.degradation(target, noise), target


class _Flat:
    """Images of any sizes as one flat tensor, cropped by index arithmetic."""

    def __init__(self, images: Iterable[Tensor], device: torch.device | str):
        pixels, shapes, dtype = bytearray(), [], torch.uint8
        for image in images:
            pixels += image.flatten().numpy().data  # grows in place, where torch.cat holds all of it twice
            shapes.append(image.shape)
            dtype = image.dtype
        self.pixels = torch.frombuffer(pixels, dtype=dtype).to(device)
        self.shapes = torch.tensor(shapes)
        self.starts = torch.tensor([0, *self.shapes.prod(1)[:-1]]).cumsum(0)
        self.strides, self.areas = self.shapes[:, 2], self.shapes[:, 1] * self.shapes[:, 2]
        self.colors, self.device = shapes[0][0], device

    def to(self, device: torch.device) -> _Flat:
        moved = copy.copy(self)
        moved.pixels, moved.device = self.pixels.to(device), device
        return moved

    def gather(self, image: Tensor, corner: Tensor, flips: Tensor, side: int) -> Tensor:
        """Crops ``(B, C, side, side)``, flipped in rows and columns and then transposed where `flips` says so."""
        line = torch.arange(side)
        rows = torch.where(flips[:, :1], side - 1 - line, line) + corner[:, :1]  # (B, side)
        columns = torch.where(flips[:, 1:2], side - 1 - line, line) + corner[:, 1:]
        grid = rows[:, :, None] * self.strides[image, None, None] + columns[:, None, :]
        grid = torch.where(flips[:, 2, None, None], grid.transpose(1, 2), grid)
        planes = self.starts[image, None] + torch.arange(self.colors) * self.areas[image, None]
        index = (planes[:, :, None, None] + grid[:, None]).to(self.device, non_blocking=True)
        crops = self.pixels[index]
        return crops.float().div_(255) if crops.dtype == torch.uint8 else crops


def _generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of the draws for `purpose` in one step; hashed, as PyTorch's CPU generator keeps 32 bits of a seed."""
    digest = hashlib.sha256(f"{seed} {step} {purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "big"))


def schedule(shape: Cosine | Step, progress: float) -> float:
    """Learning rate at `progress` in [0, 1) of the run, as a fraction of its peak.

    In the fraction `warm_up` of the run the rate first rises linearly.
    """
    if progress < shape.warm_up:
        return progress / shape.warm_up
    if isinstance(shape, Step):
        return shape.factor ** sum(progress >= at for at in shape.at)
    done = max(0.0, (progress - shape.hold) / (1 - shape.hold))
    return shape.floor + (1 - shape.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Validation:
    """Photographs that are in neither training nor test: `degraded` ``(N, C, h, w)`` and `clean` ``(N, C, s h, s w)``,
    float32 in [0, 1]."""

    degraded: Tensor
    clean: Tensor

    @torch.inference_mode()
    def psnr(self, network: nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> float:
        """Mean PSNR (dB) of the photographs as `network` restores them, clamped to [0, 1]."""
        found = []
        for degraded, clean in zip(*(x.split(VALIDATED_AT_ONCE) for x in (self.degraded, self.clean)), strict=True):
            with _autocast(device, dtype):
                restored = network(degraded.to(device)).float().clamp(0, 1)
            error = (restored - clean.to(device)).square().mean((1, 2, 3))
            found.append(-10 * error.clamp(min=LEAST_ERROR).log10())
        return torch.cat(found).mean().item()


@dataclass
class Trained:
    """Result of a training: the averaged weights; a log with a row per interval (step, loss, psnr in dB, lr); and the
    validation curve, the PSNR of the averaged weights on the validation photographs (step, psnr in dB)."""

    weights: dict[str, Tensor]
    log: list[dict]
    curve: list[dict]


def _silent(line: str) -> None:
    """Said to nobody; a function with a name, for other processes find it by that."""


def train(
    network: Network,
    crops: Crops,
    recipe: Recipe,
    budget: Budget,
    seed: int,
    checkpoint: Path,
    *,
    validation: Validation | None = None,
    precision: str = "float32",
    clock: Callable[[], float],
    say: Callable[[str], None] = _silent,
    save_every: float = 60.0,
    processes: int = 1,
) -> Trained:
    """Train `network` in place and return its averaged weights (on the CPU), its log and its validation curve.

    Resumes from `checkpoint` where it exists, saves to it every `save_every` seconds of `clock` and at the end; the
    caller removes it once the result is safe. `say` gets a line of progress now and then. `precision` is a key of
    PRECISIONS. `processes` share every batch, each on a GPU of its own where there are GPUs: the same steps, and the
    same weights but for the order of sums; the network itself then stays as it was.

    Raises TrainingError where the loss is not finite, the checkpoint is another network's or cannot be saved, and where
    the batch cannot be shared evenly.
    """
    if processes > 1 and not dist.is_initialized():
        return _shared(processes, budget, (network, crops, recipe, budget, seed, checkpoint), {
            "validation": validation, "precision": precision, "clock": clock, "say": say, "save_every": save_every,
        })  # fmt: skip
    rank = dist.get_rank() if processes > 1 else 0
    device, dtype = crops.device, PRECISIONS[precision]
    network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval().requires_grad_(False)
    chosen = recipe.optimiser
    optimiser = OPTIMISERS[chosen.name](
        parameter_groups(network, budget), betas=chosen.betas, weight_decay=chosen.weight_decay, fused=True
    )
    criterion = LOSSES[recipe.loss]
    state = {"network": network, "average": average, "optimiser": optimiser}
    start, log, curve, sums, counted = _resume(checkpoint, state)
    sums = sums.to(device)  # loss and squared error, summed since the last row of the log
    learned, kept = (
        [list(tensors(net)) for net in (average, network)] for tensors in (nn.Module.parameters, nn.Module.buffers)
    )

    began = saved = told = clock()
    ends = {round((row + 1) * budget.steps / LOG_ROWS) for row in range(LOG_ROWS)} | {budget.steps}
    validated = {round(budget.steps / 2**k) for k in range(HALVINGS + 1)}
    for step in range(start, budget.steps):
        progress = step / budget.steps
        share_of_peak = schedule(recipe.schedule, progress + 1 / budget.steps)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share_of_peak
        network.start_step(progress, _generator(seed, step, "network"))
        part = 2 if progress < budget.half_crops else 1
        degraded, target = (images[rank::processes] for images in crops.draw(budget.batch, seed, step, part))
        with _autocast(device, dtype):
            restored = network(degraded.contiguous(memory_format=torch.channels_last))
        loss = criterion(restored.float(), target) + network.auxiliary_loss()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if processes > 1:
            _average_gradients(network)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        # A short run's first weights say nothing: the horizon of the average grows to its full length.
        _average(learned, kept, 1 - min(budget.ema, (1 + step) / (10 + step)))

        with torch.no_grad():
            found = torch.stack([loss.detach(), F.mse_loss(restored.float(), target)])
            if processes > 1:
                dist.all_reduce(found)
            sums += found / processes
        counted += 1
        now = clock()
        if step + 1 in ends:
            log.append(_row(step + 1, sums / counted, budget.lr * share_of_peak))
            sums.zero_()
            counted = 0
        if validation and step + 1 in validated and rank == 0:
            curve.append({"step": step + 1, "psnr": validation.psnr(average, device, dtype)})
        if rank == 0 and (now - told > 1 or step + 1 == budget.steps):
            say(_line(step + 1, budget, log, (step + 1 - start) / max(now - began, 1e-9)))
            told = now
        if rank == 0 and (now - saved > save_every or step + 1 == budget.steps):
            _save(checkpoint, state, step=step + 1, log=log, curve=curve, sums=sums.cpu(), counted=counted)
            saved = now
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in average.state_dict().items()
    }
    return Trained(weights, log, curve)


def parameter_groups(network: nn.Module, budget: Budget) -> list[dict]:
    """The parameters in one group, or with an `attention_lr` in two: those of attention modules apart."""
    of_attention = {id(p) for module in network.modules() if isinstance(module, Attention) for p in module.parameters()}
    if budget.attention_lr is None or not of_attention:
        return [{"params": [*network.parameters()], "peak": budget.lr}]
    return [
        {"params": [p for p in network.parameters() if (id(p) in of_attention) == apart], "peak": peak}
        for apart, peak in ((False, budget.lr), (True, budget.attention_lr))
    ]


def gpus(batch: int) -> int:
    """How many processes `train` may have here: one for each GPU there is, as far as these share a batch evenly."""
    return max(n for n in range(1, max(1, torch.cuda.device_count()) + 1) if batch % n == 0)


def _shared(processes: int, budget: Budget, given: tuple, options: dict) -> Trained:
    """`train` in several processes of torchrun's launcher."""
    if budget.batch % processes:
        raise TrainingError(f"a batch of {budget.batch} cannot be shared by {processes} processes")
    here = LaunchConfig(
        1, 1, processes, run_id=given[-1].stem, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        max_restarts=0, start_method="spawn",
    )  # fmt: skip
    return elastic_launch(here, _process)(given, options | {"processes": processes})[0]


def _process(given: tuple, options: dict) -> Trained:
    """`train` in one of several processes; all return the same, the first with the log."""
    rank, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        network, crops, *rest = given
        # PyTorch hands tensors on as shared memory: right for the crops, which nobody writes
        return train(copy.deepcopy(network), crops.to(device), *rest, **options)
    finally:
        dist.destroy_process_group()


def _average_gradients(network: nn.Module) -> None:
    """Give every process the mean of the gradients: those of the whole batch, as all have equal parts of it.

    Plain sums instead of PyTorch's wrapper, which warns of every option that leaves a layer without a gradient.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def _autocast(device: torch.device | str, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(torch.device(device).type, dtype or torch.bfloat16, enabled=dtype is not None)


def _average(learned: Sequence[list[Tensor]], kept: Sequence[list[Tensor]], weight: float) -> None:
    """Move the first list's parameters towards the second's; buffers (ENLCA's random features) are copied, as a mean
    of random draws is none."""
    with torch.no_grad():
        torch._foreach_lerp_(learned[0], learned[1], weight)
        for a, b in zip(*kept, strict=True):
            a.copy_(b)


def _row(step: int, means: Tensor, lr: float) -> dict:
    loss, squared_error = means.tolist()
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} by step {step}; lower the profile's lr")
    return {"step": step, "loss": loss, "psnr": -10 * math.log10(max(squared_error, LEAST_ERROR)), "lr": lr}


def _line(step: int, budget: Budget, log: Sequence[dict], rate: float) -> str:
    last = log[-1] if log else {"loss": math.nan, "psnr": math.nan}
    left = (budget.steps - step) / rate
    return (
        f"step {step}/{budget.steps}  loss {last['loss']:.5f}  PSNR {last['psnr']:.2f} dB"
        f"  {rate * budget.batch:.1f} images/s  {left // 60:.0f} min {left % 60:02.0f} s left"
    )


def _save(path: Path, state: dict, **progress) -> None:
    if not torch.isfinite(progress["sums"]).all():
        raise TrainingError(f"the loss is not finite by step {progress['step']}; lower the profile's lr")
    write_checkpoint(path, {**{key: part.state_dict() for key, part in state.items()}, **progress})


def _resume(path: Path, state: dict) -> tuple[int, list[dict], list[dict], Tensor, int]:
    if not path.exists():
        return 0, [], [], torch.zeros(2), 0
    saved = read_checkpoint(path)
    try:
        for key, part in state.items():
            part.load_state_dict(saved[key])
        return saved["step"], saved["log"], saved["curve"], saved["sums"], saved["counted"]
    except Exception as error:  # torch raises half a dozen types of error for a foreign file
        raise TrainingError(_unusable(path, "not a checkpoint of this network", error)) from None


def write_checkpoint(path: Path, content: dict) -> None:
    """Save tensors and plain values whole, followed by their SHA-256: a bit that flips on the disk is noticed.

    Raises TrainingError, naming the file, when the disk is full or not writable.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    write_whole(path, lambda temporary: temporary.write_bytes(data + hashlib.sha256(data).digest()))


def read_checkpoint(path: Path) -> dict:
    """The content of `write_checkpoint`, its tensors on the CPU; raises TrainingError where the file is damaged."""
    data = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[:-size]).digest() != data[-size:]:
        raise TrainingError(f"{path}: the checkpoint is damaged; delete it to start anew")
    try:
        return torch.load(io.BytesIO(data[:-size]), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of error
        raise TrainingError(_unusable(path, "not a checkpoint", error)) from None


def _unusable(path: Path, what: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return f"{path}: {what} ({reason}); delete it to start anew"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file that then takes the place of `path`; a failure leaves `path` as it was.

    Raises TrainingError, naming the file, when the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a power cut after the replacement must not leave an empty file
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"{path}: could not be saved ({str(error).splitlines()[0]}); free some space") from None
