"""Files written whole: a kill, a full disk or a power cut leaves what was there. And their hashes."""

import hashlib
import os
from pathlib import Path


def write(path: Path, content: str) -> None:
    """Put `content` in the place of a file, whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def digest(path: Path) -> str:
    """sha256 of a file, or of the Python files of a folder with their names."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = "".join(f"{file.relative_to(path)} {digest(file)}\n" for file in sorted(path.rglob("*.py")))
    return hashlib.sha256(files.encode()).hexdigest()
