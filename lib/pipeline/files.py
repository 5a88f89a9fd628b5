"""Files written whole: a kill, a full disk or a power cut leaves what was there."""

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
