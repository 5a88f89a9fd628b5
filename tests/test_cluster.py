"""Rows on the nodes of a Ray cluster, all of them processes of this machine: a node killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import KEPT, Clone, environment

from lib.training import read_checkpoint

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")

TWO_HEADS = "dagl_gray_denoise_25-heads_2"
TWO_HEADS_ENTRY = (
    f"  {TWO_HEADS}:\n"
    "    {title: two heads, model: dagl, task: gray_denoise_25, recipe: common, options: {heads: 2}}\n"
)

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


class Cluster:
    """A head and two nodes of one core; each node keeps its folders in a place of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.running = folder, []
        self._start("head", "--head", "--port", self.address.partition(":")[2], "--num-cpus=0", "--include-dashboard=0")
        self.nodes = [self._start(name, "--address", self.address, "--num-cpus=1") for name in ("one", "two")]

    def _start(self, name: str, *options: str) -> subprocess.Popen:
        own = {"TMPDIR": str(self.folder / name), "RESTORATION_CACHE": str(self.folder / name / "cache"), **TOKEN}
        (self.folder / name).mkdir()
        started = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block", "--disable-usage-stats"]
        started += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--temp-dir=/tmp/ray"]
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            started, cwd=self.folder, env=environment(**own), stdout=log, stderr=log, start_new_session=True
        )
        self.running.append(process)
        wanted, until = "--block" if name != "head" else "started", time.monotonic() + 300
        while wanted not in (self.folder / f"{name}.log").read_text():
            assert process.poll() is None and time.monotonic() < until, (self.folder / f"{name}.log").read_text()
            time.sleep(0.2)
        return process

    def works_on(self, node: str) -> list[str]:
        """The experiments that a node is training."""
        return [path.name for path in (self.folder / node).glob("restoration-*/results/tiny/train/*")]

    def close(self) -> None:
        for process in reversed(self.running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Clone:
    """A clone with four experiments, none of them trained, that save a checkpoint at every step."""
    clone = Clone(tmp_path_factory.mktemp("begun") / "clone", seeds="[1]")
    clone.edit("params.yaml", "steps: 4", "steps: 100")
    clone.edit("params.yaml", "\nexperiments:\n", f"\nexperiments:\n{TWO_HEADS_ENTRY}")
    clone.edit("params.yaml", f"      - {KEPT[0]}\n", f"      - {KEPT[0]}\n      - {TWO_HEADS}\n")
    clone.edit("lib/training.py", "save_every: float = 60.0", "save_every: float = 0.0")
    clone.shell("dvc repro -q resolve data.dvc")
    clone.commit("begun")
    return clone


def bring_up_to_date(rows: list[str], address: str | None) -> str:
    """Code that brings rows up to date, and no tables or reports after them."""
    return (
        "from lib.params import Params; from lib.pipeline import repro;"
        f"raise SystemExit(repro.bring_up_to_date({rows}, Params(), 2, {address!r}))"
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The results of a clone, and what it says that they were made of."""
    found = [path for path in (folder / "results/tiny").rglob("*") if path.is_file() and path.parent.name != "machine"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*found, folder / "dvc.lock"]}


def test_a_killed_node_costs_nothing_and_results_are_those_of_a_plain_run(begun, cluster, tmp_path):
    clone, plain = begun.copy(tmp_path / "cluster"), begun.copy(tmp_path / "plain")
    output = (tmp_path / "output").open("w+")
    rows = [*KEPT, TWO_HEADS]
    command = [sys.executable, "-c", bring_up_to_date(rows, cluster.address)]
    running = subprocess.Popen(command, cwd=clone.folder, env=environment(**TOKEN), stdout=output, stderr=output)
    lost, steps = None, []
    while running.poll() is None:
        for name in [lost] if lost else cluster.works_on("two"):
            for checkpoint in (clone.folder / "checkpoints").glob(f"{name}-1-*.pt"):
                try:
                    step = read_checkpoint(checkpoint)["step"]
                except FileNotFoundError:  # the training has ended just now
                    continue
                if not lost and step < 90:
                    os.killpg(cluster.nodes[1].pid, signal.SIGKILL)
                    lost, step = name, read_checkpoint(checkpoint)["step"]
                steps.append(step)
        time.sleep(0.05)
    output.seek(0)
    said = output.read()
    assert running.returncode == 0, said
    went_on = lost and steps == sorted(steps) and steps[-1] > steps[0]
    assert went_on, f"{lost} did not go on from its checkpoint: {steps}"
    assert f"{lost}: done" in said.splitlines()

    plain.shell(f'python -c "{bring_up_to_date(rows, None)}"')
    assert contents(clone.folder) == contents(plain.folder)
    assert not {f"{stage}@{name}" for name in rows for stage in ("train", "evaluate")} & clone.changed()
    assert not list((clone.folder / "checkpoints").glob("*"))
    before = contents(clone.folder)
    ended = clone.shell(f'python -c "{bring_up_to_date(rows, cluster.address)}"')
    assert ended.stdout == "" and contents(clone.folder) == before


def test_ctrl_c_leaves_what_is_done_and_the_next_run_does_the_rest(begun, tmp_path):
    """On this machine alone (`--cluster auto`), the whole command."""
    clone, said = begun.copy(tmp_path / "auto"), tmp_path / "output"
    command = [sys.executable, "-m", "lib", "repro", "--study", "dagl_ablation", "--cluster", "auto", "--jobs", "1"]
    with said.open("w") as output:
        running = subprocess.Popen(command, cwd=clone.folder, env=environment(), stdout=output, stderr=output,
                                   start_new_session=True)  # fmt: skip
    while not (done := re.findall(r"^(dagl\S+|edsr\S+): done", said.read_text(), re.MULTILINE)):
        assert running.poll() is None, said.read_text()
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process
    assert running.wait() == 130, said.read_text()
    assert "Traceback" not in said.read_text()
    [weights] = (clone.folder / f"results/tiny/weights/{done[0]}").iterdir()
    made = weights.stat().st_mtime_ns
    assert f"train@{done[0]}" not in clone.changed()

    ended = clone.shell("python -m lib repro --study dagl_ablation --cluster auto --jobs 2")
    assert f"{done[0]}: done" not in ended.stdout and weights.stat().st_mtime_ns == made
    assert not clone.changed() - {
        "published_numbers",
        "report_published_numbers",
        "tables",
        "summary",
        "report@dagl_ablation",
    }
    assert (clone.folder / "results/tiny/report/dagl_ablation/report_dagl_ablation.ipynb").exists()


def test_a_task_needs_no_clone_where_it_runs():
    import ray

    from lib.pipeline import cluster, work

    for module in (cluster, work):
        ray.cloudpickle.register_pickle_by_value(module)
    code = "import sys, pickle; sys.modules['lib'] = None; print(pickle.load(sys.stdin.buffer).__name__)"
    pickled = ray.cloudpickle.dumps(cluster._task)
    ended = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert ended.stdout == b"_task\n", ended.stderr
