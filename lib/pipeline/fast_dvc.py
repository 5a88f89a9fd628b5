"""`python -m lib.pipeline.fast_dvc`: dvc, with another way of writing dvc.lock; takes dvc's arguments.

DVC rewrites the whole lock after every stage with a parser in Python that keeps comments, of which a lock has none; in
place, so that a kill leaves it cut; and in the order in which stages ended. Here it is parsed and written in C, sorted,
aside, and then takes the lock's place; so does data.dvc. Plain `dvc repro` reads them like its own.

This is the one place that reaches into DVC, and it does so in the version alone that it was tried with.
"""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import dvc
from dvc import dvcfile
from dvc.cli import main
from dvc.utils.serialize import dumps_yaml, modify_yaml
from ruamel.yaml import YAML

from . import files

TRIED_WITH = "3.67.1"

#: Columns of a line in dvc.lock.
WIDTH = 80


def write_lock(data: dict[str, Any], stream: TextIO) -> None:
    """Write the content of a dvc.lock byte for byte as DVC writes it."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 2**31 - 1  # its rule for long lines is not the one of the parser in Python
    yaml.representer.add_representer(OrderedDict, yaml.representer.represent_dict.__func__)
    text = io.StringIO()
    yaml.dump(data, text)
    stream.writelines(
        _wrapped(line) if len(line) > WIDTH + 1 and ": " in line else line for line in text.getvalue().splitlines(True)
    )


def _wrapped(line: str) -> str:
    """A line "key: word" as the parser in Python breaks it: before a word that would reach beyond the width."""
    key, _, value = line.partition(": ")
    return f"{key}: \n{' ' * (len(key) - len(key.lstrip(' -')) + 2)}{value}"


@contextmanager
def modify(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """In place of DVC's `modify_yaml`: the content of a file, to be changed."""
    lock = Path(path)
    if lock.suffix != ".lock":
        with modify_yaml(path, fs) as data:
            yield data
        return
    data = YAML(typ="safe").load(lock) if lock.exists() else {}
    yield data
    if "stages" in data:
        data["stages"] = dict(sorted(data["stages"].items()))
    text = io.StringIO()
    write_lock(data, text)
    files.write(lock, text.getvalue())


def dump(path: str, data: dict[str, Any], fs: Any = None) -> None:
    """In place of DVC's `dump_yaml`: write data.dvc."""
    files.write(Path(path), dumps_yaml(data))


def install() -> None:
    """Have this process write locks so, where DVC is the version that this was tried with."""
    if dvc.__version__ == TRIED_WITH:
        dvcfile.modify_yaml, dvcfile.dump_yaml = modify, dump


if __name__ == "__main__":
    install()
    sys.exit(main(sys.argv[1:]))
