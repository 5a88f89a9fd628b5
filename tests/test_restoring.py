"""People's own images: read as the study's sets are, restored with what they say of themselves, or refused by name."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import encoded
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from lib.__main__ import main
from lib.models import build
from lib.params import Params
from lib.pipeline import restoring
from lib.pipeline.runner import StageError

BY = "input_gray_denoise_25"  # gives the image back


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def restore(*arguments: str) -> int:
    return main(["restore", *arguments, "--by", BY])


def huge() -> bytes:
    """A PNG of 30000 x 30000 pixels, of which there is the header alone."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def long_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 70_000_000, zip=True)
    return encoded(Image.new("L", (8, 8)), pnginfo=text)


SOUND = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)))
REFUSED = {
    "text": (lambda: b"no image", "truncated or no image (cannot identify image file"),
    "cut": (lambda: SOUND[: len(SOUND) // 2], "truncated or no image"),
    "16 bits of PPM": (lambda: b"P6 8 8 65535\n" + bytes(384), "its format is PPM; save it as PNG"),
    "huge": (huge, "is larger than 100 megapixels; `--megapixels 900` takes it, given the memory"),
    "long text": (long_text, "truncated or no image (Decompressed data too large"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_image_that_cannot_be_restored_is_refused_in_one_line(kind, capsys):
    content, message = REFUSED[kind]
    Path("image").write_bytes(content())
    assert restore("image", "--into", "out.png") == 1 and not Path("out.png").exists()
    assert re.fullmatch(rf"error: image: {re.escape(message)}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("images", "into", "message"),
    [
        (["nowhere.png"], "out.png", "nowhere.png: No such file or directory"),
        (["*.bmp"], "out", "*.bmp: No such file or directory"),
        (["a.png"], "out.jpg", "out.jpg: end it in .png, .tif, .tiff, or name a folder that exists"),
        (["a.png"], "nowhere/out.png", "nowhere/out.png: nowhere is no folder; make it first"),
        (["a.png"], "a.png", "a.png: is an image that is to be restored; name another file or folder"),
        (["a.png", "b.png"], "out.png", "out.png: names a file for 2 images; name a folder"),
        (["a.png", "more/a.png"], "out", "a.png and more/a.png: both would become out/a.png; restore them into two"),
        (["a.png", "b.png"], ".", "a.png: is an image that is to be restored; name another file or folder"),
        (["a**b"], "out", "a**b: Invalid pattern"),
        (["empty"], "out", "empty: the folder has no images"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_written_nothing_is_begun(images, into, message, capsys):
    for name in ("a.png", "b.png", "more/a.png", "empty/notes.txt", "empty/._a.png", "empty/x.png/a.txt"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_bytes(SOUND)
    assert restore(*images, "--into", into) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert Path("a.png").read_bytes() == SOUND and not Path("out").exists()


def test_files_folders_and_patterns_are_restored_and_one_bad_file_stops_no_other(capsys):
    for name in ("a.png", "scans/b.PNG", "scans/c.png", "scans/notes.txt", "d_1.png", "scans/._b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(SOUND)
    Path("scans/c.png").write_bytes(SOUND[:100])
    assert restore("a.png", "scans", "d_*.png", "--into", "out") == 1
    assert capsys.readouterr().err.startswith("error: scans/c.png: truncated or no image")
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", "d_1.png"]
    assert (np.asarray(Image.open("out/b.png")) == np.asarray(Image.open("a.png"))).all()


def test_an_image_that_is_named_twice_is_one(capsys):
    Path("a.png").write_bytes(SOUND)
    assert restore("a.png", "a.*", "--into", "out.png") == 0 and Path("out.png").is_file()


def test_resolution_profile_and_orientation_are_carried_over():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    pixels = np.zeros((8, 16), np.uint8)
    pixels[0, 0] = 255
    Path("a.png").write_bytes(encoded(Image.fromarray(pixels), dpi=(300, 300), exif=exif, icc_profile=profile))
    assert restore("a.png", "--into", "out.png") == 0
    with Image.open("out.png") as image:
        assert image.size == (8, 16) and image.getpixel((7, 0)) == 255
        assert image.info["icc_profile"] == profile and round(image.info["dpi"][0]) == 300
    Path("b.png").write_bytes(encoded(Image.fromarray(pixels).convert("RGB"), icc_profile=profile))
    assert restore("b.png", "--into", "out.png") == 0  # gray now: the profile of the colours is not its own
    assert "icc_profile" not in Image.open("out.png").info


@pytest.mark.parametrize("dpi", [(2**32 - 1, 1), (0, 0), (1, 0)], ids=str)
def test_a_resolution_that_no_image_has_is_left_out(dpi):
    unit, x, y = ((tag, kind, 1, value) for tag, kind, value in ((296, 3, 2), (282, 5, 8), (283, 5, 8)))
    head = struct.pack("<2sHIII", b"II", 42, 16, *dpi)
    tags = [(256, 3, 1, 8), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8), x, y, unit]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    Path("a.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert "dpi" in Image.open("a.tif").info and restore("a.tif", "--into", "out.png") == 0
    assert "dpi" not in Image.open("out.png").info


def test_damaged_exif_data_is_a_line_and_no_obstacle(capsys):
    Image.new("L", (8, 8), 9).save("a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    assert restore("a.jpg", "--into", "out.png") == 0
    assert re.fullmatch(r"note: a.jpg: Corrupt EXIF data.*\n", capsys.readouterr().err)


def test_an_opaque_channel_is_left_out_and_a_large_scan_taken_where_that_is_asked_for(capsys):
    Path("a.png").write_bytes(encoded(Image.new("RGBA", (1100, 1000), (9, 9, 9, 255))))
    assert restore("a.png", "--into", "out.png", "--megapixels", "1") == 1
    assert "a.png: is larger than 1 megapixels; `--megapixels 2` takes it" in capsys.readouterr().err
    assert restore("a.png", "--into", "out.png", "--megapixels", "1.1") == 0
    assert (np.asarray(Image.open("out.png")) == 9).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("by", ["input_gray_denoise_25", "bicubic_sr_x2"])
def test_opacity_is_kept(mode, by):
    """Upright as the image, at the size of the result; the colours beneath are restored like others."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "LA" else "RGB")
    if mode == "P":
        image = image.quantize(8)
        image.info["transparency"] = bytes([0, 90])
    else:
        image.putalpha(Image.fromarray(np.arange(240, dtype=np.uint8).repeat(4).reshape(24, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Path("a.png").write_bytes(encoded(image, exif=exif))
    assert main(["restore", "a.png", "--into", "out.png", "--by", by]) == 0
    opacity = ImageOps.exif_transpose(Image.open("a.png")).convert("RGBA").getchannel("A")
    with Image.open("out.png") as restored:
        assert restored.mode == ("LA" if by.startswith("input") else "RGBA")
        scale = 1 if by.startswith("input") else 2
        assert restored.size == (24 * scale, 40 * scale)
        expected = opacity.resize(restored.size, Image.Resampling.BICUBIC)
        assert restored.getchannel("A").tobytes() == expected.tobytes() and len(expected.getcolors()) > 2


def test_that_a_file_has_more_pictures_is_said(capsys):
    Image.new("L", (8, 8)).save("a.jpg", "MPO", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    assert restore("a.jpg", "--into", "out.png") == 0
    assert "note: a.jpg: the first of 2 pictures in it is taken" in capsys.readouterr().err


def test_damaged_weights_of_the_registry_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(restoring, "ROOT", tmp_path)
    monkeypatch.setattr(restoring, "missing", lambda row: None)
    (tmp_path / "data/weights").mkdir(parents=True)
    (tmp_path / "data/weights/dncnn_25.pth").write_bytes(b"damaged")
    with pytest.raises(StageError, match=r"data/weights/dncnn_25.pth: is damaged; remove it and run `dvc repro"):
        restoring.load(Params(profile="cpu"), "dncnn_gray_denoise_25")


def test_dagl_restores_images_of_every_size_in_the_phase_of_its_training():
    torch.manual_seed(0)
    network = build("dagl", colors=1, width=8, blocks=2, heads=1, stages=1, patch=5, stride=3).eval()
    for side, taken in ((60, 60), (62, 62), (64, 65), (67, 68)):
        x = torch.rand(1, 1, side, 60)
        with torch.no_grad():
            padded = torch.cat([x, x[:, :, side - 1 - taken + side : side - 1].flip(2)], 2)
            assert padded.shape[2] == taken
            torch.testing.assert_close(restoring.in_phase(network, x), network(padded)[:, :, :side])
    plain = build("edsr", colors=1, width=4, blocks=1)
    x = torch.rand(1, 1, 64, 64)
    assert torch.equal(restoring.in_phase(plain, x), plain(x))
