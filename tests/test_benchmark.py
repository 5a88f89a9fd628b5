"""The benchmark's own behaviour on tiny inputs: both forms are what they say, and numbers are of what was done."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import __main__ as command
from benchmarks import measure, parts, report
from benchmarks.cases import CASES, FORMS, Call
from lib import params
from lib.flops import flops
from lib.params import ROOT


class Operations(TorchDispatchMode):
    """The names of the operations that run inside the context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.LARGE, "cpu", 256)
        return pd.DataFrame(parts.modules("cpu", list(CASES), seconds=0.01, side=12))


def frame(*rows: tuple) -> pd.DataFrame:
    """Records from (part, case, quantity, value, form, mode, dtype, side, repeat), the last ones by default."""
    return pd.DataFrame([parts.Record(*row) for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_each_form_runs_operations_of_its_own(name):
    ran = []
    for form in FORMS:
        call = Call(name, form, "forward", side=20)
        with call.context(), Operations() as operations:
            call()
        ran.append(operations.names)
    assert ran[0] != ran[1]


def test_modules_are_measured_alternately_and_agree(records):
    seconds = records[records.quantity == "seconds"]
    assert (seconds.value > 0).all()
    order = list(zip(seconds.repeat, seconds.case, seconds["mode"], seconds.form, strict=True))
    rounds = range(measure.FEWEST_ROUNDS)
    assert order == [(n, c, mode, f) for n in rounds for c in CASES for mode in ("forward", "both") for f in FORMS]
    assert (records[records.quantity == "difference"].value < 1e-5).all()


def test_a_comparison_ends_when_its_time_is_over(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "timed", lambda call, seconds: calls.append((call, seconds)) or len(calls))
    found = list(measure.rounds({"a": {"x": 1, "y": 2}, "b": {"x": 3}}, 36.0))
    assert len(found) == 2 * measure.ROUNDS
    assert found[:3] == [("a", 0, {"x": 1, "y": 2}), ("b", 0, {"x": 3}), ("a", 1, {"x": 4, "y": 5})]
    assert calls[:3] == [(1, 1.0), (2, 1.0), (3, 2.0)]  # half of its share, as long as the timer's search takes
    assert len(list(measure.rounds({"a": {"x": 1}}, 0.0))) == measure.FEWEST_ROUNDS


def test_seconds_are_those_of_one_call_after_one_that_does_not_count(monkeypatch):
    call = Call("LIR filter", "ours", "both", side=13)
    made = []
    monkeypatch.setattr(Call, "__call__", lambda self: made.append(torch.randn(300, 300) @ torch.randn(300, 300)))
    assert 0 < measure.timed(call) < 10 and len(made) == 2
    several = measure.timed(call, 0.05)
    assert len(made) > 5 and several < 0.05


def test_flops_are_those_of_what_was_done():
    a, b, c = (torch.randn(8, 8) for _ in range(3))
    of = lambda function: flops(function)[1]  # noqa: E731
    assert of(lambda: (a @ b, torch.addmm(c, a, b), c.addmm_(a, b))) == 3 * 2 * 8**3
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)) == 2 * 2 * 2 * 3 * 3 * 4
    assert of(lambda: attended.sum().backward()) == 5 * 2 * 2 * 3 * 3 * 4  # the scores once more, four gradients


@pytest.mark.skipif(not measure.STATUS.exists(), reason="resident memory is known on Linux")
def test_peak_is_the_most_that_was_held():
    code = """
import contextlib, torch
from benchmarks import measure
class Call:
    context = contextlib.nullcontext
    def __call__(self):
        torch.ones(2**23)  # 32 MiB, dropped at once
        torch.ones(2**22)
print(measure.growth(Call(), "cpu"))
"""
    environment = {**os.environ, **parts.ALLOCATOR}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert 30 * 2**20 < int(ran.stdout) < 46 * 2**20


def test_memory_is_measured_in_a_process_of_its_own():
    forms = ("ours", "definition")
    [ours], [definition] = (parts.in_process("cpu", "non-local", form, "both", [64], "float32") for form in forms)
    assert ours["side"] == 64 and ours["growth"] < definition["growth"] / 6
    with pytest.raises(RuntimeError, match="KeyError"):
        parts.in_process("cpu", "no such module", "ours", "both", [16], "float32")


@pytest.mark.parametrize("name", parts.known("blocks", "cpu"))
def test_a_bound_of_the_scores_changes_no_result(name):
    whole, bounded = (Call(name, "ours", "forward", side=20, max_scores=bound) for bound in (None, 5000))
    assert 5000 in {getattr(module, "max_scores", None) for module in bounded.module.modules()}
    assert measure.relative_difference(bounded()[0], whole()[0]) < 1e-5


def test_curves_and_blocks_are_measured_for_every_bound(monkeypatch):
    monkeypatch.setattr(parts, "in_process", lambda device, *arguments: list(parts.held(device, *arguments)))
    rows = pd.DataFrame(parts.sizes("cpu", ["non-local", "LIR filter"], sides=(16, 24)))
    assert rows.groupby(["case", "form", "quantity"]).size().eq(2).all()
    assert [len(axis.lines) for axis in report.against_size(rows).axes] == 4 * [len(FORMS)]
    rows = pd.DataFrame(parts.blocks("cpu", ["DAGL stage"], seconds=0.01, side=20))
    table = report.blocks(rows.assign(value=rows.value.clip(lower=1)))  # here, memory freed before hides some of it
    assert table.index.tolist() == [("DAGL stage", bound) for bound in ("own", "2^19", "2^18", "2^17", "2^16")]


def test_a_step_is_measured_for_both_forms_and_trains(monkeypatch):
    monkeypatch.setitem(measure.LARGE, "cpu", 256)
    name = "dagl_gray_denoise_25"
    rows = pd.DataFrame(parts.steps("cpu", [name, "edsr_gray_denoise_25"], seconds=0.01))
    table = report.steps(rows)
    assert table.index.tolist() == [name] and (table[["definition (ms)", "ours (ms)"]] > 0).all(axis=None)
    assert f"less: {name})." in report.steps_finding(table.assign(ratio=0.9))
    assert "1.50 times" in report.steps_finding(table.assign(ratio=1.5))
    step = parts.Step(params.Params().experiment(name), "cpu")
    before = [tensor.clone() for tensor in step.network.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))


def test_results_take_the_place_of_older_ones_and_are_shown(records, tmp_path, monkeypatch):
    rows = [parts.Record(**row) for row in records.to_dict("records")]
    machine, other = measure.machine("cpu"), parts.Record("memory", "LIR filter", "bytes", 1e9, "ours", "forward")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    for part, found in (("memory", [other]), ("modules", rows), ("modules", rows)):
        monkeypatch.setitem(parts.PARTS, part, lambda *_, found=found: iter(found))
        command.run(part, "cpu", machine, [])
    file = tmp_path / f"{machine['name']}.csv"
    file.write_text(file.read_text().replace("definition", "reference"))  # its name in the files of other machines
    about, read = report.load(tmp_path, machine["name"])
    assert about == machine and len(read) == len(rows) + 1
    table = report.modules(read, about)
    assert list(table.index) == [(name, mode) for name in CASES for mode in report.MODES.values()]
    assert table["memory, definition / ours"].isna().all() and set(read.form) == {"", *FORMS}
    for (module, mode), missed in table.missed[table.missed != ""].items():
        assert f"{module}, {mode}: {missed}" in report.modules_finding(table)
    assert "missed" not in report.modules(records, {"device": "cuda"})


def test_ratios_are_taken_within_a_round_and_compared_with_targets():
    values = {"definition": (4.0, 40.0, 8.0), "ours": (2.0, 10.0, 2.0)}
    rows = [
        ("modules", "DAGL stage", "seconds", second, form, "forward", "float32", 64, repeat)
        for form, seconds in values.items()
        for repeat, second in enumerate(seconds)
    ]
    for form, held in (("definition", 3e6), ("ours", 1e6)):
        rows += [("memory", "DAGL stage", "bytes", held, form, "forward")]
        rows += [("modules", "DAGL stage", quantity, 1.0, form, "forward") for quantity in ("flops", "difference")]
    rows += [("modules", parts.MACHINE, "flop/s", 1.0)]
    table = report.modules(frame(*rows), {"device": "cpu"})
    row = table.loc["DAGL stage", "forward"]
    assert (row["time, definition / ours"], row.quartiles, row["ours (ms)"]) == (4.0, "3.00 to 4.00", 2000.0)
    assert row.missed == "memory 3 < 4" and row["share of peak"] == 0.5
    assert report.modules_finding(table).endswith("Targets missed: DAGL stage, forward: memory 3 < 4.")
    slow = report.modules_finding(table.assign(**{"time, definition / ours": 0.5}))
    assert "takes 0.5 to 0.5 times as long as ours. Ours are slower in DAGL stage, forward." in slow


def test_ratios_against_the_bound_of_the_scores():
    measured = {"definition": (4.0, 800.0), "ours": (1.0, 400.0), "ours, 2^9 scores": (2.0, 100.0)}
    rows = [
        ("blocks", "DAGL stage", quantity, value, form, "forward", "float32", 20, repeat)
        for form, values in measured.items()
        for quantity, value, repeats in zip(("seconds", "bytes"), values, (2, 1), strict=True)
        for repeat in range(repeats)
    ]
    table = report.blocks(frame(*rows)).droplevel(0)
    assert table.time.to_dict() == {"own": 4.0, "2^9": 2.0} and table.memory.to_dict() == {"own": 2.0, "2^9": 8.0}
    assert (table["from"] == table.time).all() and (table["to"] == table.time).all()
    assert len(report.against_blocks(report.blocks(frame(*rows)), {"device": "cpu"}).axes) == 1


def test_a_part_that_was_not_measured_is_left_out(records):
    assert report.steps(records).empty and report.blocks(records).empty and not report.steps_finding(pd.DataFrame())
    assert report.against_size(records) is None and report.against_blocks(report.blocks(records), {}) is None


@pytest.mark.parametrize("file", sorted(command.RESULTS.glob("*.csv")), ids=lambda file: file.stem)
def test_a_committed_report_shows_the_curves_that_were_measured(file):
    measured = {"sizes", "blocks"} & set(pd.read_csv(file).part)
    cells = nbformat.read(file.with_suffix(".ipynb"), as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) == len(measured)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["speed"], "unknown part 'speed'; known: modules, memory, blocks, sizes, steps"),
        (["blocks", "--only", "LIR filter"], "part blocks has no 'LIR filter'; known: pyramid attention, DAGL stage"),
    ],
)
def test_an_unknown_name_is_refused_with_those_known(given, error, capsys):
    with pytest.raises(SystemExit):
        command.main(given)
    assert error in capsys.readouterr().err


def test_a_report_of_an_unknown_machine_is_refused(capsys):
    assert command.main(["--report", "abacus"]) == 1
    assert "abacus: no results/benchmark/abacus.csv; `make benchmark` writes it" in capsys.readouterr().err


def test_every_part_gets_the_names_and_the_seconds(monkeypatch):
    ran = []
    monkeypatch.setattr(command, "run", lambda part, device, machine, *rest: ran.append((part, *rest)))
    monkeypatch.setattr(command, "report", lambda machine: 0)
    monkeypatch.setattr(measure, "keep_freed", lambda: None)
    assert command.main(["modules", "memory", "--only", "LIR filter", "non-local", "LIR filter", "--seconds", "5"]) == 0
    assert ran == [(part, ["LIR filter", "non-local"], 5.0) for part in ("modules", "memory")]
    assert command.main([]) == 0
    assert [part for part, *_ in ran[2:]] == list(parts.PARTS) and ran[2][1:] == (list(CASES), 0)
    assert ran[-1][1] == params.Params().experiments
