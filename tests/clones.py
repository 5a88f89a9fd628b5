"""A clone of the checkout with a tiny profile, in which tests run, break and interrupt the pipeline."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from lib.params import ROOT

TINY = """
  tiny:
    sets: {train: [sample/train], validation: [], test: [sample/test]}
    seeds: [1, 2]
    evaluation: {crop: 24, tile: 24, overlap: 4, self_ensemble: false}
    models:
      edsr: {width: 4, blocks: 1, image_skip: true}
      dagl: {width: 4, blocks: 2, heads: 1, stages: 1, patch: 3, stride: 2, image_skip: true}
    training:
      gray_denoise_25: {steps: 4, batch: 2, crop: 12, lr: 1.0e-3, ema: 0.9}
    published_numbers: {sets: [sample/test], denoised: sample/test, enlarged: sample/test, crop: 32, draws: 2}
"""
KEPT = ("dagl_gray_denoise_25", "dagl_gray_denoise_25-no_graph_attention", "edsr_gray_denoise_25")


def environment(**more: str) -> dict[str, str]:
    """The variables of a command: this Python's programs, one thread, and `more`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", **more}


class Clone:
    """A clone of the checkout, with its uncommitted changes, whose params.yaml has the tiny profile in force."""

    def __init__(self, folder: Path, kept: tuple[str, ...] = KEPT, seeds: str = "[1, 2]"):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if not name.startswith("results/") and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        (folder / "dvc.lock").unlink(missing_ok=True)
        text = tiny((folder / "params.yaml").read_text(), kept)
        (folder / "params.yaml").write_text(text.replace("seeds: [1, 2]\n", f"seeds: {seeds}\n", 1))
        self.shell("git init -q .")
        self.commit("start")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The clone that lies in a folder already."""
        clone = cls.__new__(cls)
        clone.folder = folder
        return clone

    def copy(self, folder: Path) -> Self:
        return self.at(shutil.copytree(self.folder, folder))

    def shell(self, command: str, check: bool = True) -> subprocess.CompletedProcess:
        ended = subprocess.run(
            command, shell=True, cwd=self.folder, env=environment(), capture_output=True, text=True, errors="replace"
        )
        assert not check or ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended

    def commit(self, message: str) -> None:
        self.shell(f"git add -A && git -c user.name=t -c user.email=t@t commit -qm {message}")

    def repro(self, options: str = "") -> list[str]:
        """Run the study; returns the stages that ran."""
        return re.findall(r"Running stage '([^']+)'", self.shell(f"python -m lib repro {options}").stdout)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new, 1))

    def changed(self) -> set[str]:
        """Stages that DVC holds to be out of date."""
        return set(json.loads(self.shell("dvc status --json").stdout or "{}"))


def tiny(text: str, kept: tuple[str, ...]) -> str:
    """params.yaml with the tiny profile in force and only a few of its experiments and the one study."""
    text = text.replace("profile: quick", "profile: tiny", 1).replace("\nprofiles:\n", f"\nprofiles:{TINY}", 1)
    head = re.sub(r"    recipe_search:\n(?: {6}.*\n)+", "", text.partition("\nbaselines:\n")[0])  # of rows not in here
    baselines = "  input_gray_denoise_25: {title: degraded input, model: input, task: gray_denoise_25}\n"
    entries = {
        "edsr_gray_denoise_25": "{title: EDSR, model: edsr, task: gray_denoise_25, recipe: common}",
        "dagl_gray_denoise_25": "{title: DAGL, model: dagl, task: gray_denoise_25, recipe: common}",
        "dagl_gray_denoise_25-no_graph_attention": "{title: a, model: dagl, task: gray_denoise_25, recipe: common, "
        "options: {no_graph_attention: true}}",
    }
    experiments = "".join(f"  {name}:\n    {entry}\n" for name, entry in entries.items() if name in kept)
    names = "".join(f"      - {name}\n" for name in (*kept, "input_gray_denoise_25"))
    claims = "".join(f"      - {{better: {kept[0]}, worse: {name}}}\n" for name in kept[1:])
    study = f"  dagl_ablation:\n    title: DAGL\n    experiments:\n{names}    claims:\n{claims}"
    return f"{head}\nbaselines:\n{baselines}\nexperiments:\n{experiments}\nstudies:\n{study}"
