"""Files written whole: a kill, a full disk or a power cut leaves what was there. And their hashes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to be filled, which then takes the place of `path`, or goes where filling it fails."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write(path: Path, content: str) -> None:
    """Put `content` in the place of a file, whole or not at all."""
    with whole(path) as aside:
        aside.write_text(content, encoding="utf-8")


def digest(path: Path) -> str:
    """sha256 of a file, or of the Python files of a folder with their names."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = "".join(f"{file.relative_to(path)} {digest(file)}\n" for file in sorted(path.rglob("*.py")))
    return hashlib.sha256(files.encode()).hexdigest()
