"""Pins, lock, licence and what a clone must hold."""

import ast
import importlib.metadata
import re
import subprocess
import sys

from ruamel.yaml import YAML

from lib.params import ROOT

ENVIRONMENT = YAML(typ="safe").load(ROOT / "environment.yml")
PIP = next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
PINS = dict(line.split("==") for line in PIP if "==" in line)
LOCK = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_is_what_is_installed_and_locked():
    locked = {normal(name): version for name, version in LOCK.items()}
    for name, version in PINS.items():
        assert importlib.metadata.version(name).split("+")[0] == version == locked[normal(name)]


def test_every_pip_line_is_a_pin_the_lock_or_the_project():
    assert [line for line in PIP if "==" not in line] == ["-c constraints.txt", "-e ."]


def test_every_direct_import_is_pinned():
    installed = importlib.metadata.packages_distributions()
    pinned = {normal(name) for name in PINS}
    local = {"lib", "tests", "benchmarks", *(path.stem for path in ROOT.glob("tests/**/*"))}
    optional = {"bm3d", "ray", "triton"}  # the last comes with PyTorch where that can use a GPU
    for path in [*ROOT.glob("lib/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                if name not in local | optional:
                    assert {normal(dist) for dist in installed[name]} & pinned, f"{path.name} imports {name}"


def test_make_reads_the_same_pip_part_as_conda():
    [command] = re.findall(r"^\t(sed .*) > \.requirements\.txt$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert subprocess.check_output(command, shell=True, cwd=ROOT, text=True).splitlines() == PIP
