"""DVC's run cache: the results that a stage gave anywhere with the same command, code, values and images.

Any clone can take them without running anything. DVC's own commands almost do: `dvc push --run-cache` leaves out the
results that git keeps, and `dvc repro --pull` runs whatever it does not find, after fetching every run there is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dvc import fs
from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.output import HashInfo
from dvc.repo import Repo, lock_repo
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, _get_stage_hash

from ..params import ROOT
from . import fast_dvc
from .runner import StageError

#: How a folder takes files from a cache on another file system: without copying all images for every row.
LINKS = "reflink,hardlink,symlink,copy"

logging.getLogger("dvc").setLevel(logging.WARNING)  # it says five lines of each stage
fast_dvc.install()


def restore(stages: Sequence[str]) -> list[str]:
    """Put the results of stages in place, in this order, from DVC's cache or its default remote; nothing is run.

    Returns the stages whose results are in neither, with all that come after the first of them. Raises StageError where
    DVC cannot look.
    """
    with _project() as repo:
        return _restore(repo, stages)


def make(stages: Sequence[str], needs: Sequence[str]) -> None:
    """Bring stages up to date in this order: take results that are somewhere already, run what is lacking, and copy
    that to the default remote where there is one. `needs`: outputs of DVC to put in place before.

    Raises StageError where one cannot be made, or does not reach the remote.
    """
    with _project() as repo:
        remote = repo.config["core"].get("remote")
        (repo.pull if remote else repo.checkout)([*needs])
        lacking = _restore(repo, stages)
        for name in stages:
            if name in lacking:
                repo.reproduce(name, single_item=True)
            if remote:  # what was in the cache too: it may not have arrived when it was made
                _push(repo, name)


def push_outputs(outputs: Iterable[str]) -> None:
    """Copy outputs of DVC to the default remote; raises StageError where they do not arrive."""
    with _project() as repo:
        repo.push([*outputs])


@contextlib.contextmanager
def _project() -> Iterator[Repo]:
    try:
        with contextlib.chdir(ROOT), Repo(str(ROOT), _wait_for_lock=True) as repo:  # DVC looks for dvc.yaml from there
            yield repo
    except DvcException as error:
        raise StageError(" ".join(str(error).split())) from None


def _restore(repo: Repo, stages: Sequence[str]) -> list[str]:
    for number, name in enumerate(stages):
        with lock_repo(repo):
            [stage] = repo.stage.collect(name)
            if stage.changed():
                if not _found(repo, stage):
                    return [*stages[number:]]
                repo.reproduce(name, single_item=True)
    return []


def _found(repo: Repo, stage: PipelineStage) -> bool:
    """Whether the results of a stage are in the cache, or in the remote and now in the cache."""
    try:
        stage.save_deps()
        for out in stage.outs:
            out.hash_info = HashInfo()  # which is that of old results, where the lock has any: DVC would take these
        if repo.config["core"].get("remote"):
            key, ours = _get_stage_hash(stage), repo.cache.legacy
            _copy(key, _remote(repo), ours)
            for objects in repo.stage_cache.get_used_objs(_entries(ours, key)).values():
                repo.cloud.pull(objects)
        repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    return True


def _push(repo: Repo, name: str) -> None:
    [stage] = repo.stage.collect(name)
    stage.save_deps()
    key, ours = _get_stage_hash(stage), repo.cache.legacy
    for objects in repo.stage_cache.get_used_objs(_entries(ours, key)).values():
        if failed := repo.cloud.push(objects).failed:
            raise StageError(f"{name}: {len(failed)} of its files did not reach the DVC remote; run it again")
    _copy(key, ours, _remote(repo))  # last: an entry stands for files that are there


def _entries(store: Any, key: str) -> Iterator[tuple[str, str]]:
    """The runs that a store of DVC's holds of a stage with its dependencies, by DVC's two keys."""
    folder = store.fs.join(store.path, "runs", key[:2], key)
    if store.fs.exists(folder):
        yield from ((key, store.fs.name(path)) for path in store.fs.find(folder))


def _copy(key: str, source: Any, target: Any) -> None:
    for _, value in [*_entries(source, key)]:
        parts = ("runs", key[:2], key, value)
        if not target.fs.exists(there := target.fs.join(target.path, *parts)):
            fs.generic.copy(source.fs, source.fs.join(source.path, *parts), target.fs, there)


def _remote(repo: Repo) -> Any:
    return repo.cloud.get_remote_odb(hash_name="md5-dos2unix")


def store(remote: bool) -> dict[str, Any]:
    """Where other machines put their runs, as sections of DVC's configuration: this project's default remote, where
    `remote` is wanted and there is one, else its cache folder."""
    with _project() as repo:
        name = repo.config["core"].get("remote") if remote else None
        if not name:
            return {"cache": {"dir": repo.cache.legacy.path, "type": LINKS}}
        return {"core": {"remote": name}, "remote": {name: dict(repo.config["remote"][name])}}


def configure(sections: dict[str, Any]) -> None:
    """Merge sections into DVC's configuration of this folder, which then needs no git."""
    with Config(str(ROOT / ".dvc")).edit("local") as config:
        for name, section in {"core": {}, **sections}.items():
            config.setdefault(name, {}).update(section)
        config["core"]["no_scm"] = True
