"""Parameters: params.yaml, checked whole and resolved into frozen dataclasses.

`schema` defines the content of the file, `resolve` its meaning for a profile. Nothing else in the project reads YAML
parameters or the environment.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from .faults import ParamsError
from .resolve import ROOT, Baseline, Experiment, Params, Row, Study, fingerprint, table, text
from .schema import PUBLISHED, Budget, Claim, Delta, Evaluation, PublishedNumbers, Recipe


def check(params: Params) -> None:
    """Build every row's network, task and convention; raises ParamsError with all that cannot be."""
    from .checks import faults  # builds networks, which takes seconds to import

    if found := faults(params):
        raise ParamsError([f"{params.file}: {fault}" for fault in found])


def missing(row: Row) -> str | None:
    """Why a row cannot be run here: the package or the file that it `needs` and that is not there, or None.

    A file that the profile downloads counts as there, for it arrives after rows are resolved.
    """
    needed = row.needs or (row.checkpoint if isinstance(row, Baseline) else None) or ""
    if needed.startswith(f"data/{PUBLISHED}"):
        return None if row.downloaded else f"published_numbers.sets of the profile lacks {PUBLISHED.rstrip('/')!r}"
    if needed.startswith("package:"):
        package = needed.removeprefix("package:")
        return None if importlib.util.find_spec(package) else f"the package {package} is not installed"
    return None if not needed or (ROOT / needed).is_file() else f"the file {needed} is not there"


def mirror() -> str | None:
    """Folder or URL that holds copies of the published images, from the environment."""
    return os.environ.get("RESTORATION_MIRROR") or None


def cache() -> Path:
    """User-level folder that keeps downloaded files between profiles and clones."""
    base = os.environ.get("RESTORATION_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "nonlocal-restoration"
