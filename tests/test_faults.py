"""Faults made on purpose, in a clone with a tiny profile: kills, Ctrl-C, two runs at once, a full disk, damaged files.

Whatever happens, the next `repro` ends with the very files of a run that nothing disturbed, or refuses in one line that
says what to do and ends with them once that is done. What was tried and how it ended goes to docs/faults.md.
"""

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clones import Clone, environment

from lib.params import ROOT

pytestmark = pytest.mark.slow

ROWS = ("dagl_gray_denoise_25", "edsr_gray_denoise_25")
KILL, KILL_IN_LOCK, CTRL_C = "`kill -9` at a random moment", "`kill -9` while dvc.lock is written", "Ctrl-C"
REPRO = [sys.executable, "-m", "lib", "repro", "--study", "dagl_ablation", "--jobs", "2"]
PAGE = ROOT / "docs" / "faults.md"

HEAD = """# Faults on purpose

Made by `pytest -m slow tests/test_faults.py`, which runs one study of a tiny profile and disturbs it. *Survived*: the
next `repro` ended with the files of an undisturbed run, byte for byte, weights included. *Refused*: it named the file
in one line with what to do, and ended so once that was done. Nothing else may happen: the page is written only where no
result was lost or silently another.

| fault | tried | survived | refused |
| --- | ---: | ---: | ---: |
"""

#: Ways to damage a file.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
}

SECOND, FULL = "a second run meanwhile", "a full disk"
FAULTS = {KILL, KILL_IN_LOCK, CTRL_C, SECOND, FULL, *(f"a file {how}" for how in DAMAGES)}

#: Files that are made anew where they are damaged.
MADE = {
    "weights": "results/tiny/weights/edsr_gray_denoise_25/seed_1.safetensors",
    "measured numbers": "results/tiny/evaluate/edsr_gray_denoise_25/images.csv",
    "executed notebook": "results/tiny/evaluate/dagl_gray_denoise_25/evaluate.ipynb",
    "values of a stage": "results/tiny/parameters/train/dagl_gray_denoise_25.json",
    "table": "results/tiny/tables/dagl_ablation/rows.csv",
    "figure": "results/tiny/report/dagl_ablation/differences.png",
    "training photograph": "data/images/sample/train/*.npy",
    "downloaded photograph": "downloads/images/sample/test/*.npy",
    "manifest": "data/train/gray_denoise_25.csv",
    "kept pins": "results/tiny/pins/dvc.lock",
}


@pytest.fixture(scope="module")
def outcomes(request):
    """Fault -> how each try ended. pytest's cache keeps it while the code stays as it is, so that cases can be run one
    at a time; once every case passed it becomes the page."""
    patterns = "lib/**/*.py", "notebooks/*.ipynb", "dvc.yaml", "params.yaml", "tests/test_faults.py"
    code = [path for pattern in patterns for path in ROOT.glob(pattern)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(code))).hexdigest()
    found: dict[str, list[str]] = {}
    yield found
    found = request.config.cache.get(f"faults/{digest}", {}) | found
    request.config.cache.set(f"faults/{digest}", found)
    if not FAULTS - found.keys():
        ends = ("survived", "refused")
        rows = [
            f"| {fault} | {len(tries)} | {' | '.join(str(tries.count(end)) for end in ends)} |"
            for fault, tries in sorted(found.items())
        ]
        PAGE.write_text(HEAD + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A clone in which nothing was run."""
    return Clone(tmp_path_factory.mktemp("start"), ROWS, seeds="[1]").folder


def begin(folder: Path, largest: int | None = None) -> subprocess.Popen:
    """Start the study; `largest`: bytes at which every file that is written is full."""
    own = {"RESTORATION_CACHE": str(folder.with_name("images")), "PYTHONDONTWRITEBYTECODE": "1"}

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    out = (folder.with_name(f"{folder.name}.log")).open("w")
    return subprocess.Popen(
        REPRO, cwd=folder, env=environment(**own), stdout=out, stderr=out, start_new_session=True, preexec_fn=limit
    )


def said(folder: Path) -> str:
    return folder.with_name(f"{folder.name}.log").read_text(errors="replace")


def run(folder: Path, largest: int | None = None) -> int:
    return begin(folder, largest).wait()


def content(folder: Path) -> dict[str, bytes]:
    """Everything that git would see, and the weights."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=folder, capture_output=True, text=True
    )
    names = {*listed.stdout.splitlines(), *(str(p.relative_to(folder)) for p in folder.glob("results/*/weights/*/*"))}
    return {name: (folder / name).read_bytes() for name in sorted(names) if (folder / name).is_file()}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return [name for name in {**found, **expected} if found.get(name) != expected.get(name)]


@pytest.fixture(scope="module")
def undisturbed(start, outcomes) -> tuple[Path, float]:
    """A clone in which the study was run once, during which a second run was refused; and the seconds it took."""
    folder, began = shutil.copytree(start, start.with_name("undisturbed")), time.monotonic()
    first = begin(folder)
    while first.poll() is None and "Running stage" not in said(folder):
        time.sleep(0.05)
    second = subprocess.run(REPRO, cwd=folder, capture_output=True, text=True)
    assert second.returncode == 1
    assert re.fullmatch(r"error: the pipeline is being run in .* since .*; wait for its end\n", second.stderr)
    assert first.wait() == 0, said(folder)
    outcomes[SECOND] = ["refused"]
    return folder, time.monotonic() - began


def test_a_run_that_is_killed_or_interrupted_again_and_again_ends_like_any_other(start, undisturbed, outcomes):
    """Each run goes on from where the one before was stopped; one that comes to its end is compared, and begun anew."""
    (sound, seconds), draw, runs = undisturbed, random.Random(0), 1
    expected, folder = content(sound), shutil.copytree(start, start.with_name("stopped_1"))
    faults = [KILL] * 15 + [KILL_IN_LOCK] * 5 + [CTRL_C] * 5
    draw.shuffle(faults)
    tries: dict[str, list[str]] = {fault: [] for fault in (KILL, KILL_IN_LOCK, CTRL_C)}
    while faults:
        running, until = begin(folder), time.monotonic() + draw.uniform(0.1, 0.4) * seconds
        if faults[-1] == KILL_IN_LOCK:
            while running.poll() is None and not any(folder.glob("dvc.lock.*.part")):
                time.sleep(0.0005)
        else:
            while running.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGINT if faults[-1] == CTRL_C else signal.SIGKILL)
            running.wait()
            assert faults[-1] != CTRL_C or "Traceback" not in said(folder), said(folder)
            tries[faults.pop()].append("survived")
            continue
        assert running.returncode == 0, said(folder)
        assert not differences(content(folder), expected)
        runs += 1
        folder = shutil.copytree(start, start.with_name(f"stopped_{runs}"))
    assert run(folder) == 0, said(folder)
    assert not differences(content(folder), expected)
    outcomes.update(tries)


def test_a_full_disk_leaves_nothing_half_written(start, undisturbed, outcomes):
    """Every file that is larger than a limit meets it, from pins and tables to notebooks, figures and images."""
    expected = content(undisturbed[0])
    folder, tries = shutil.copytree(start, start.with_name("full")), 0
    for largest in (0, 2_000, 10_000, 40_000, 150_000, 1_000_000):
        tries += run(folder, largest) != 0
    assert tries > 3
    assert run(folder) == 0, said(folder)
    assert not differences(content(folder), expected)
    outcomes[FULL] = ["survived"] * tries


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_made_anew_or_named(how, undisturbed, outcomes):
    folder, expected = undisturbed[0], content(undisturbed[0])
    made = {path: path.read_bytes() for path in (sorted(folder.glob(pattern))[0] for pattern in MADE.values())}
    for path in made:
        damage(path, how)
    assert run(folder) == 0, said(folder)
    assert not differences(content(folder), expected)
    assert [path for path, sound in made.items() if path.read_bytes() != sound] == []
    tries = ["survived"] * len(made)
    for name in ("dvc.lock", "data.dvc", "params.yaml"):
        if (name, how) == ("params.yaml", "a bit flipped"):
            continue  # which can make it another study
        sound = (folder / name).read_bytes()
        damage(folder / name, how)
        refused = run(folder) != 0
        if refused:
            last = said(folder).strip().splitlines()[-1]
            assert last.startswith("error: ") and name in last and "Traceback" not in said(folder), said(folder)
            (folder / name).write_bytes(sound)
            assert run(folder) == 0, said(folder)
        assert not differences(content(folder), expected)
        tries.append("refused" if refused else "survived")
    outcomes[f"a file {how}"] = tries


def damage(path: Path, how: str) -> None:
    damaged = DAMAGES[how](path.read_bytes())
    path.unlink()  # it may be a link into DVC's cache
    path.write_bytes(damaged)
