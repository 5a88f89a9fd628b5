"""Training: what a crop is, what a step does, and that an interrupted run ends like an uninterrupted one."""

import copy
import dataclasses
import math
import subprocess
import sys
import time
from itertools import count

import pytest
import torch
from loopback import no_file_larger_than

from lib.models import build
from lib.params import Budget, Recipe
from lib.params.schema import Cosine, Optimiser, Step
from lib.tasks import degradations
from lib.training import Crops, TrainingError, Validation, read_checkpoint, schedule, train, write_whole

RECIPE = Recipe("mse", Optimiser("adam"), Cosine("cosine", warm_up=0.1), clip=1.0)
BUDGET = Budget(steps=30, batch=4, crop=16, lr=2e-3, ema=0.9)


def photographs(*sizes, colors=1):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (colors, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def crops(images=None, crop=16):
    noise = degradations.build("gaussian_noise", sigma=25)
    return Crops(images or photographs((40, 50), (33, 21)), None, noise, crop)


def network():
    """Starts as the identity."""
    torch.manual_seed(0)
    return build("edsr", colors=1, width=4, blocks=1, image_skip=True)


def pairs():
    clean = torch.rand(9, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Validation(clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), clean)


def run(path, steps=None, net=None, images=None, recipe=RECIPE, budget=BUDGET, clock=time.monotonic, **options):
    budget = dataclasses.replace(budget, steps=steps or budget.steps)
    return train(net or network(), images or crops(), recipe, budget, 1, path, clock=clock, **options)


def test_crops_are_flips_and_rotations_of_parts_of_the_images():
    image = photographs((9, 11), colors=3)[0]
    drawn = Crops([image], None, degradations.build("gaussian_noise", sigma=0), 4)
    variants = set()
    for step in range(200):
        degraded, target = drawn.draw(1, seed=1, step=step)
        assert torch.equal(degraded, target)
        pixels = (target[0] * 255).round().byte()
        found = [
            (top, left, turns, mirrored)
            for top in range(6)
            for left in range(8)
            for turns in range(4)
            for mirrored in (False, True)
            if torch.equal(_turned(image[:, top : top + 4, left : left + 4], turns, mirrored), pixels)
        ]
        assert found
        variants.add(found[0][2:])
    assert len(variants) == 8


def _turned(x, turns, mirrored):
    x = torch.rot90(x, turns, (1, 2))
    return x.flip(2) if mirrored else x


@pytest.mark.parametrize("scale", [2, 3])
def test_input_and_target_are_crops_of_the_same_place(scale):
    small = photographs((20, 14), (11, 30))
    large = [image.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for image in small]
    drawn = Crops(large, small, degradations.build("bicubic", scale=scale), 6 * scale)
    for step in range(20):
        part = 1 + step % 2
        degraded, target = drawn.draw(3, 1, step, part)
        assert degraded.shape == (3 * part**2, 1, 6 // part, 6 // part)
        assert torch.equal(target, degraded.repeat_interleave(scale, 2).repeat_interleave(scale, 3))


def test_given_mosaics_keep_their_pattern():
    clean = photographs((13, 18), (16, 11), colors=3)
    given = [(degradations.build("bayer")(image[None] / 255, None)[0] * 255).round().byte() for image in clean]
    drawn = Crops(clean, given, degradations.build("bayer"), 6)
    for step in range(20):
        degraded, target = drawn.draw(4, 1, step)
        assert torch.equal(degraded, degradations.build("bayer")(target, None))


def test_noise_is_drawn_anew_and_depends_on_seed_and_step_only():
    drawn = crops()
    first, again = drawn.draw(4, 1, 7), drawn.draw(4, 1, 7)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], drawn.draw(4, 1, 8)[0])
    assert not torch.equal(first[0], drawn.draw(4, 2, 7)[0])


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(TrainingError, match="smaller than the crop 48"):
        crops(crop=48)


def test_schedules():
    step = Step("step", at=(0.5, 0.75), factor=0.1)
    assert [schedule(step, at) for at in (0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = Cosine("cosine", warm_up=0.1, hold=0.2, floor=0.2)
    assert [schedule(cosine, at) for at in (0.05, 0.15, 0.6, 1)] == pytest.approx([0.5, 1, 0.6, 0.2])


def test_it_learns(tmp_path):
    ramp = torch.linspace(40, 200, 64).byte().expand(1, 64, 64).contiguous()
    result = run(tmp_path / "c.pt", 150, images=crops([ramp]), budget=dataclasses.replace(BUDGET, lr=5e-3))
    assert result.log[-1]["psnr"] > result.log[0]["psnr"] + 6


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path):
    clean = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    validation = Validation(clean + 0.1, clean)
    whole = run(tmp_path / "whole.pt", validation=validation)
    ticks = count()

    def stop(line):
        if next(ticks) == 12:
            raise KeyboardInterrupt

    options = {"say": stop, "save_every": 0.0, "validation": validation}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part.pt", clock=count(0, 2).__next__, **options)
    assert 0 < read_checkpoint(tmp_path / "part.pt")["step"] < BUDGET.steps
    resumed = run(tmp_path / "part.pt", validation=validation)
    assert resumed.log == whole.log and resumed.curve == whole.curve
    assert [row["step"] for row in whole.curve] == [1, 2, 4, 8, 15, 30]
    assert all(torch.equal(whole.weights[key], resumed.weights[key]) for key in whole.weights)


SCRIPT = """
import sys
sys.path[:0] = ["tests"]
from pathlib import Path
from test_training import run, torch
torch.set_num_threads(1)
run(Path(sys.argv[1]), 400, save_every=0.02)
"""


def test_kill_9_loses_nothing(tmp_path):
    checkpoint = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, checkpoint]) as killed:
        while not checkpoint.exists() and killed.poll() is None:
            time.sleep(0.005)
        killed.kill()
    assert read_checkpoint(checkpoint)["step"] < 400
    whole, resumed = run(tmp_path / "whole", 400), run(checkpoint, 400)
    assert all(torch.equal(whole.weights[key], resumed.weights[key]) for key in whole.weights)


def test_random_features_are_not_averaged(tmp_path):
    made = build("enlca", colors=1, scale=1, width=8, blocks=1, every=1, redraw=0.3, image_skip=True)
    trained = run(tmp_path / "checkpoint", net=made)
    features = {key: value for key, value in made.state_dict().items() if key.endswith("projection_matrix")}
    assert features and all(torch.equal(trained.weights[key], value) for key, value in features.items())


def test_an_infinite_loss_stops_with_its_step(tmp_path):
    broken = network()
    with torch.no_grad():
        broken.tail.bias.fill_(math.inf)
    with pytest.raises(TrainingError, match=r"the loss is (inf|nan) by step \d+; lower the profile's lr"):
        run(tmp_path / "c.pt", net=broken)
    assert not (tmp_path / "c.pt").exists()


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    run(tmp_path / "c.pt")
    other = build("edsr", colors=1, width=8, blocks=1)
    with pytest.raises(TrainingError, match=r"c\.pt: not a checkpoint of this network .*delete it to start anew"):
        run(tmp_path / "c.pt", net=other)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", *range(0, 100, 20)])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "c.pt"
    run(path, steps=2)
    data = bytearray(path.read_bytes())
    if isinstance(damage, int):
        data[len(data) * damage // 100] ^= 16
    path.write_bytes({"empty": b"", "cut": data[:-9], "foreign": b"nothing" * 99}.get(damage, data))
    with pytest.raises(TrainingError, match=r"c\.pt: the checkpoint is damaged; delete it to start anew"):
        run(path, steps=2)


def test_validation_is_of_the_averaged_weights_and_changes_no_training(tmp_path):
    validation = pairs()
    noisy, clean = validation.degraded, validation.clean
    with_it, without = run(tmp_path / "a", validation=validation), run(tmp_path / "b")
    assert all(torch.equal(with_it.weights[key], without.weights[key]) for key in without.weights)
    averaged = network()
    averaged.load_state_dict(with_it.weights)
    with torch.no_grad():
        restored = averaged(noisy).clamp(0, 1)
    expected = (-10 * (restored - clean).square().mean((1, 2, 3)).log10()).mean().item()
    assert with_it.curve[-1] == {"step": BUDGET.steps, "psnr": pytest.approx(expected, abs=1e-4)}


def test_an_exact_restoration_counts_as_100_db(tmp_path):
    clean = torch.rand(2, 1, 8, 8)
    same = Crops(photographs((8, 8)), photographs((8, 8)), degradations.build("paired"), 4)
    budget = dataclasses.replace(BUDGET, crop=4)
    found = run(tmp_path / "x.pt", 1, images=same, budget=budget, validation=Validation(clean, clean))
    assert found.log[-1]["psnr"] == found.curve[-1]["psnr"] == 100


@pytest.mark.parametrize("model", ["edsr", "enlca"])
def test_two_processes_that_share_each_batch_end_with_the_same_weights(model, tmp_path):
    """One seed, the same global batch: the order of sums alone differs. ENLCA has a loss and features of its own."""
    options = {"edsr": {"attention": "mhnl"}, "enlca": {"common_trunk": True}}[model]
    torch.manual_seed(0)
    net = build(model, colors=1, width=8, blocks=2, image_skip=True, **options)
    options = {"recipe": dataclasses.replace(RECIPE, clip=0.1), "validation": pairs()}
    found = [run(tmp_path / f"{n}.pt", net=copy.deepcopy(net), processes=n, **options) for n in (1, 2)]
    for key, value in found[0].weights.items():
        assert (value - found[1].weights[key]).abs().max() <= 1e-5, key
    assert found[1].log[-1]["psnr"] == pytest.approx(found[0].log[-1]["psnr"], abs=1e-3)
    assert found[1].curve == [{"step": p["step"], "psnr": pytest.approx(p["psnr"], abs=1e-3)} for p in found[0].curve]
    with pytest.raises(TrainingError, match="a batch of 4 cannot be shared by 3 processes"):
        run(tmp_path / "3.pt", processes=3)


def test_attention_has_a_rate_of_its_own(tmp_path):
    """With a rate of 0 but for attention, only attention moves; with one rate twice, nothing is other than without."""
    torch.manual_seed(0)
    net = build("edsr", colors=1, width=8, blocks=2, attention="nl")
    ends = []
    for attention_lr, lr in ((None, 1e-3), (1e-3, 1e-3), (1e-3, 1e-12)):
        budget = dataclasses.replace(BUDGET, lr=lr, attention_lr=attention_lr)
        ends.append(run(tmp_path / f"{len(ends)}.pt", net=copy.deepcopy(net), budget=budget).weights)
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    moved = {key for key, value in net.state_dict().items() if (ends[2][key] - value).abs().max() > 1e-6}
    assert moved and all(key.startswith("body.1.") for key in moved)


def test_a_run_begins_with_small_crops(tmp_path):
    """As many pixels a step, in crops of half the side."""
    seen, drawn, net = [], crops(), network()
    net.register_forward_pre_hook(lambda net, inputs: seen.append(tuple(inputs[0].shape)) if net.training else None)
    run(tmp_path / "x.pt", 4, net, drawn, budget=dataclasses.replace(BUDGET, half_crops=0.5))
    batch, side = BUDGET.batch, drawn.side
    assert seen == [(4 * batch, 1, side // 2, side // 2)] * 2 + [(batch, 1, side, side)] * 2


def test_bf16_trains_close_to_float32_and_keeps_float32_weights(tmp_path):
    exact, rounded = (run(tmp_path / name, precision=name) for name in ("float32", "bf16"))
    assert all(weight.dtype == torch.float32 for weight in rounded.weights.values())
    assert not all(torch.equal(exact.weights[key], rounded.weights[key]) for key in exact.weights)
    assert rounded.log[-1]["psnr"] == pytest.approx(exact.log[-1]["psnr"], abs=0.1)


def test_without_clipping_a_large_gradient_moves_as_far_as_it_says(tmp_path):
    free, clipped = (run(tmp_path / str(clip), recipe=dataclasses.replace(RECIPE, clip=clip)) for clip in (None, 1e-9))
    start = network().state_dict()
    moved = [sum((r.weights[k] - start[k]).abs().sum() for k in start) for r in (free, clipped)]
    assert moved[0] > 2 * moved[1]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"whole")

    def fill(temporary):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"weights: could not be saved .*No space left.*; free some space"):
        write_whole(path, fill)
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


def test_a_really_full_disk_stops_training_and_leaves_no_half_file(tmp_path):
    with no_file_larger_than(4096), pytest.raises(TrainingError, match="could not be saved"):
        run(tmp_path / "c.ckpt", save_every=0.0)
    assert list(tmp_path.iterdir()) == []
