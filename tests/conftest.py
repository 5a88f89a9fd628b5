"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loopback import Site

from lib import params


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Folder with the published benchmark images: the one named in the environment, or `shared/data` beside us."""
    folder = Path(params.mirror() or params.ROOT.parent / "shared" / "data")
    if not (folder / "registry.csv").is_file():
        pytest.skip("no mirror of the benchmark images: RESTORATION_MIRROR names none")
    return folder


@pytest.fixture
def site():
    """A loopback HTTP server; see `tests/loopback.py`."""
    served = Site()
    yield served
    served.close()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks run fastest, and the same everywhere, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def uninitialised_is_nan():
    torch.use_deterministic_algorithms(True)  # PyTorch then fills what it allocates
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
