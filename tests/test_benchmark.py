"""The benchmark's own behaviour on tiny inputs: what is compared is equal, and what is measured is what was done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import measure, parts, process, report
from benchmarks.cases import CASES, REFERENCES, set_blocks, with_references
from lib import models, params
from lib.params import ROOT

#: Smaller sides than the table's, odd where the module allows.
SIDES = {name: 12 if name == "IGNN graph" else 13 for name in CASES}


@pytest.fixture(scope="module")
def records():
    return pd.DataFrame(parts.modules("cpu", sides=SIDES, visits=2))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_all_forms_agree(name, batch):
    case = CASES[name]
    module, inputs = case.module(), case.inputs(12, batch)
    found = {}
    for form, function in case.forms.items():
        x = inputs[0].clone().requires_grad_()
        outputs = function(module, x, *inputs[1:])
        sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in outputs if y.requires_grad).backward()
        found[form] = [*outputs, x.grad]
    for form in set(found) - {"reference"}:
        *outputs, grad = (
            measure.relative_difference(a, b) for a, b in zip(found[form], found["reference"], strict=True)
        )
        assert max(outputs) < 1e-5 and grad < 1e-4, (form, outputs, grad)


def test_modules_are_measured_by_turns(records):
    seconds = report.wide(records, "modules", "seconds", "case", "mode", "repeat")
    assert set(seconds.index.droplevel(2)) == {(name, mode) for name in CASES for mode in ("forward", "both")}
    assert seconds.groupby(level=[0, 1]).size().eq(2 * parts.REPEATS["cpu"]).all()
    assert (seconds[["ours", "reference"]] > 0).all(axis=None)
    assert (records[records.quantity == "difference"].value < 1e-5).all()


def test_ratios_are_taken_within_a_round():
    index = pd.MultiIndex.from_product([["a"], ["forward"], range(3)], names=["case", "mode", "repeat"])
    seconds = pd.DataFrame({"reference": [4.0, 40.0, 8.0], "ours": [2.0, 10.0, 2.0]}, index=index)
    assert report.ratios(seconds).loc["a", "forward"].tolist() == [3.0, 4.0, 4.0]


def test_turns_and_their_limit():
    calls = []
    forms = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measure.by_turns(forms, 5, limit=60) == [{"a": n, "b": n + 1} for n in range(1, 10, 2)]
    assert calls == ["a", "b"] * 5
    assert len(measure.by_turns(forms, 5, limit=0)) == 3
    assert len(measure.by_turns(forms, 5, limit=60, enough=60)) == measure.MOST  # short calls are repeated more often
    assert len(measure.by_turns(forms, 5, limit=0, enough=0)) == 3


def test_work_is_what_was_done():
    a, b, c = (torch.randn(8, 8) for _ in range(3))
    _, product = measure.counted(lambda: (a @ b, torch.addmm(c, a, b), c.addmm_(a, b)))
    assert product == (3 * 2 * 8**3, 0, 0)
    _, passes = measure.counted(lambda: torch.add(a, b, out=c).view(64).add_(1))
    assert passes == (0, (3 + 2) * 4 * 64, 0)
    assert measure.counted(lambda: a + a[:1].expand(8, 8))[1].moved == 4 * (64 + 8 + 64)


def test_time_is_told_apart_by_kinds_of_operations():
    a = torch.randn(512, 512)
    products = measure.apart(lambda: [a @ a for _ in range(20)])
    assert products["matrix products"] > 10 * products["other operations"] and products["exponentials"] == 0
    passes = measure.apart(lambda: [(a.exp(), torch.softmax(a, 1), a + a) for _ in range(20)])
    assert passes["matrix products"] == 0 and min(passes["exponentials"], passes["other operations"]) > 0


def test_exponentials_are_counted_in_fused_attention_too():
    a, b, c = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    work = measure.counted(lambda: (a.exp(), torch.softmax(b, 1), torch.softmax(b.data, 1, out=c.detach())))[1]
    assert work.exponentials == 3 * 24 and work.moved == 0
    attended, work = measure.counted(lambda: nn.functional.scaled_dot_product_attention(a, b, c))
    assert work.exponentials == 2 * 3 * 3
    assert measure.counted(lambda: attended.sum().backward())[1].exponentials == 2 * 3 * 3


@pytest.mark.skipif(not measure.STATUS.exists(), reason="resident memory is known on Linux")
def test_peak_is_what_was_held():
    code = """
import torch
from benchmarks import measure
with measure.Peak() as peak:
    torch.ones(2**23)  # 32 MiB, dropped at once
    torch.ones(2**22)
print(peak.growth, peak.resident)
"""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **process.ALLOCATOR}, capture_output=True, text=True)
    growth, resident = map(int, ran.stdout.split())
    assert 30 * 2**20 < growth < 46 * 2**20 < resident


def test_memory_in_a_process_of_its_own_is_bounded():
    forms = ("ours", "reference")
    [ours], [reference] = (process.in_process("held", "non-local", form, "both", [64], "float32") for form in forms)
    assert ours["side"] == 64 and ours["growth"] < reference["growth"] / 6
    with pytest.raises(RuntimeError, match="KeyError"):
        process.in_process("held", "no such module", "ours", "both", [16], "float32")


def test_a_form_in_a_process_of_its_own_is_called_again_and_again():
    with process.Form("non-local", "ours", "both", 13, "float32") as form:
        assert form.seconds() > 0 and form.seconds() > 0
        spent = form.apart()
        assert set(spent) == {*measure.KINDS, "between"} and spent["matrix products"] > 0 and spent["exponentials"] == 0
    assert form.process.exitcode == 0
    with pytest.raises(RuntimeError, match="no such module, ours, forward: failed"):
        process.Form("no such module", "ours", "forward", 16, "float32").__enter__()


def test_a_form_in_this_process_has_what_the_other_has():
    with process.FormHere("LIR filter", "ours", "both", 13, "float32") as form:
        assert form.seconds() > 0
        assert set(form.apart()) == {*measure.KINDS, "between"}


def test_small_blocks_hold_less_and_give_the_same():
    for name in ("DAGL stage", "pyramid attention"):
        case = CASES[name]
        module, [x] = case.module(), case.inputs(20, 1)
        whole = module(x)
        assert set_blocks(module, 5000) is module
        assert measure.relative_difference(module(x), whole) < 1e-5


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("dagl", {"heads": 2, "stages": 2, "stage_blocks": 1, "patch": 5, "stride": 3, "blocks": 2}),
        ("dagl", {"attention": "mhnl", "stages": 2, "stage_blocks": 1, "blocks": 2}),
        ("panet", {"blocks": 2}),
        ("enlca", {"blocks": 3, "every": 3, "scale": 2, "contrastive_start": 0}),
        ("ignn", {"blocks": 2, "embedding": "random"}),
        ("lir", {"blocks": [1, 1, 1, 1, 1]}),
    ],
)
def test_a_network_with_references_is_the_same_network(model, options):
    torch.manual_seed(0)
    network = models.build(model, colors=1, width=16, **options).train()
    for tensor in network.parameters():
        if not tensor.any():
            nn.init.normal_(tensor, std=0.1)
    plain, x = with_references(network), torch.rand(2, 1, 12, 14)
    replaced = [module for module in plain.modules() if "forward" in vars(module)]
    assert replaced and all(type(module) in REFERENCES for module in replaced)
    assert not any("forward" in vars(module) for module in network.modules())
    assert measure.relative_difference(plain(x), network(x)) < 1e-5
    assert torch.as_tensor(plain.auxiliary_loss()).item() == pytest.approx(
        torch.as_tensor(network.auxiliary_loss()).item(), rel=1e-5
    )


def test_a_step_is_measured_for_both():
    name = "dagl_gray_denoise_25"
    rows = pd.DataFrame(parts.steps("cpu", [name, "edsr_gray_denoise_25"], repeats=2))
    assert len(rows[rows.quantity == "seconds"]) == 4
    table = report.steps(rows)
    assert table.index.tolist() == [name] and (table[["reference (ms)", "ours (ms)"]] > 0).all(axis=None)
    assert table["share of peak"].between(0, 1).all()
    assert "1 networks" not in report.steps_finding(table).split(";")[0]


def test_a_step_changes_the_weights():
    study = params.Params(profile="quick")
    chosen = study.experiment("dagl_gray_denoise_25")
    network = parts.experiments.network(chosen).train()
    before = [p.clone() for p in network.parameters()]
    degraded, clean = parts.images(chosen, "cpu")
    assert degraded.shape == clean.shape == (chosen.budget.batch, 1, chosen.budget.crop, chosen.budget.crop)
    parts.training_step(network, chosen, degraded, clean, "cpu")()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_results_are_written_case_by_case_and_shown(records, tmp_path, monkeypatch):
    rows = [parts.Record(**row) for row in records.to_dict("records")]
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setitem(parts.PARTS, "modules", lambda device, only: iter(rows))
    other = parts.Record("networks", "dagl", "resident", 1e9, "ours", "forward", side=16)
    monkeypatch.setitem(parts.PARTS, "networks", lambda device, only: iter([other] * 1))
    machine = measure.machine("cpu")
    for part in ("networks", "modules", "modules"):
        command.run(part, "cpu", machine)
    about, read = report.load(tmp_path, machine["name"])
    assert about == machine and len(read) == len(rows) + 1
    table = report.modules(read, about)
    assert len(table) == 2 * len(CASES) and (table["memory (MiB)"] == "not run").all()
    assert table.index[0] == ("pyramid attention", "forward")
    assert all(name in report.modules_finding(table) for name in table.index[table.missed != ""].get_level_values(0))
    bounds = report.bounds(read)
    assert bounds["bound / measured"].between(0, 2).all()
    assert (bounds["from memory (ms)"] >= bounds["exponentials (ms)"]).all()
    assert list(report.spent(read).index) == list(bounds.index)
    assert re.match(r"A median of -?\d+% of the time lies between the operations", report.spent_finding(read))
    late = table.index[table.missed.str.contains("time")].get_level_values(0)
    assert all(name in report.bounds_finding(bounds, table) for name in late)


def test_no_bar_is_promised_for_a_gpu(records):
    table = report.modules(records, {"device": "cuda"})
    assert not {"bar", "memory bar", "missed"} & set(table.columns) and len(table) == 2 * len(CASES)
    assert "Bars" not in report.modules_finding(table) and "every bar" not in report.modules_finding(table).lower()
    assert report.bounds_finding(report.bounds(records), table) == ""
    table["memory ratio"], table["memory (MiB)"], table["fewest scores (MiB)"] = "2.0", "60 / 30", "20"
    assert report.memory_finding(table) == ""
    table.loc[("DAGL stage", "forward"), ["memory ratio", "memory (MiB)"]] = "0.5", "30 / 60"
    assert "DAGL stage, forward: reference / ours 30 / 60 MiB, 20 of it" in report.memory_finding(table)
    table.loc[("non-local", "forward"), "ratio"] = "0.50 (0.40 to 0.60)"
    assert "slower in: " in report.modules_finding(table) and "non-local, forward" in report.modules_finding(table)


def test_a_report_of_an_unknown_machine_is_refused(capsys):
    assert command.main(["--report", "abacus"]) == 1
    assert "abacus: no results/benchmark/abacus.csv; `make benchmark` writes it" in capsys.readouterr().err


def test_figure_and_networks(records):
    found = [
        parts.Record("sizes", "non-local", quantity, float(side), form, "forward", side=side)
        for quantity in ("seconds", "bytes")
        for form in ("ours", "reference")
        for side in (32, 64)
    ]
    assert report.against_size(records) is None
    figure = report.against_size(pd.DataFrame(found))
    assert len(figure.axes) == 2 and all(len(axis.lines) == 2 for axis in figure.axes)
    held = [parts.Record("networks", "dagl", q, v) for q, v in (("seconds", 2.0), ("resident", 4e9), ("growth", 3e9))]
    assert "not all" in report.networks_finding(report.networks(pd.DataFrame(held)))


@pytest.mark.parametrize("file", sorted(command.RESULTS.glob("*.csv")), ids=lambda file: file.stem)
def test_a_report_shows_the_curves_that_were_measured(file):
    measured = {"sizes", "blocks"} & set(pd.read_csv(file).part)
    cells = nbformat.read(file.with_suffix(".ipynb"), as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) == len(measured)


def test_what_was_not_measured_is_said_to_be_so(records):
    assert "PART=steps" in report.steps_finding(report.steps(records))
    assert "PART=networks" in report.networks_finding(report.networks(records))


def test_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "unknown part 'speed'; known: modules, memory, blocks, sizes, networks, steps" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "known"), [("blocks", "pyramid attention, DAGL stage"), ("networks", "dagl, panet")])
def test_unknown_name_is_refused_with_those_known(part, known, capsys):
    with pytest.raises(SystemExit):
        command.main([part, "--only", "LIR filter"])
    assert f"part {part} has no 'LIR filter'; known: {known}" in capsys.readouterr().err


def test_a_part_knows_what_it_measures(monkeypatch, capsys):
    assert parts.names("modules", "cpu") == list(CASES)
    assert set(parts.names("steps", "cpu")) == set(params.Params().experiments)
    ran = []
    monkeypatch.setattr(command, "run", lambda part, device, machine, only: ran.append((part, only)))
    monkeypatch.setattr(command, "report", lambda machine: 0)
    assert command.main(["modules", "memory", "--only", "LIR filter", "non-local", "LIR filter"]) == 0
    assert ran == [(part, ["LIR filter", "non-local"]) for part in ("modules", "memory")]


def test_visits_are_spread_over_the_measurement(monkeypatch):
    made = []
    monkeypatch.setattr(parts.Comparison, "visit", lambda self, apart: made.append(self.name))
    compared = [parts.Comparison(name, "forward", "cpu", torch.float32, {"ours": None}) for name in CASES]
    parts.visit_all(compared, 3)
    assert made == list(CASES) * 3


def test_every_visit_has_as_many_rounds(monkeypatch):
    monkeypatch.setitem(parts.ENOUGH, "cpu", 1.0)
    compared = parts.Comparison("LIR filter", "forward", "cpu", torch.float32, {"ours": None})
    compared.visit()
    first = len(compared.rounds)
    compared.visit()
    assert first > parts.REPEATS["cpu"] and len(compared.rounds) == 2 * first


def test_time_and_memory_are_measured_for_bounds_of_the_scores(monkeypatch):
    monkeypatch.setitem(parts.BLOCKS, "DAGL stage", (12,))
    rows = pd.DataFrame(parts.blocks("cpu", ["DAGL stage"], side=20, visits=2))
    seconds = rows[rows.quantity == "seconds"]
    assert set(seconds.form) == {"reference", "ours", "ours, 2^12 scores"} and (seconds.value > 0).all()
    assert len(seconds) == 3 * 2 * parts.REPEATS["cpu"] and (rows.side == 20).all()
    assert report.blocks(rows).index.tolist() == [("DAGL stage", "own"), ("DAGL stage", "2^12")]
    bounded = process.FormHere("DAGL stage", "ours", "forward", 20, "float32", 2**12)
    assert bounded.call.args[1].graph.max_scores == 2**12


def test_ratios_of_bounds_are_reference_to_ours():
    measured = {"reference": (4.0, 400.0), "ours": (1.0, 200.0), "ours, 2^9 scores": (2.0, 100.0)}
    record = parts.Record
    rows = [
        record("blocks", "DAGL stage", "seconds", s, form, repeat=r)
        for form, (s, _) in measured.items()
        for r in (0, 1)
    ]
    rows += [record("blocks", "DAGL stage", "bytes", b, form) for form, (_, b) in measured.items()]
    table = report.blocks(pd.DataFrame(rows))
    assert table.time.tolist() == [4.0, 2.0] and table.memory.tolist() == [2.0, 4.0]
    assert (table["from"] == table.time).all() and (table["to"] == table.time).all()


def test_the_finding_names_what_reaches_both_bars_and_the_fastest_of_the_smallest():
    about, names = {"device": "cpu"}, ["own", "2^6", "2^5", "2^4"]
    index = pd.MultiIndex.from_product([["DAGL stage"], names], names=["module", "max_scores"])
    table = pd.DataFrame({"time": [2.0, 1.7, 0.9, 0.5], "memory": [3.0, 4.1, 7.9, 8.0]}, index=index)
    table = table.assign(**{"from": table.time, "to": table.time})
    said = report.blocks_finding(table, about)
    assert "memory 4): 2^6; least memory 1/7.9 of the reference's, with 2^5 at 0.90 times" in said
    assert "memory 4): none;" in report.blocks_finding(table.drop(index=("DAGL stage", "2^6")), about)
    assert len(report.against_blocks(table, about).axes) == 1
    assert report.blocks_finding(table, {"device": "cuda"}) == ""
    assert "PART=blocks" in report.blocks_finding(table[:0], about) and report.against_blocks(table[:0], about) is None


def test_machine_names_files():
    machine = measure.machine("cpu")
    assert machine["name"] == machine["name"].lower() and machine["name"].endswith("-threads")
    json.dumps(machine)


def test_a_missed_bar_of_memory_says_what_smaller_blocks_could_not_save():
    row = {"memory (MiB)": "45 / 47", "fewest scores (MiB)": "27", "memory bar": "4", "memory ratio": "1.0"}
    table = pd.DataFrame([{**row, "missed": "time memory"}, {**row, "missed": "time"}], index=[("a", "b"), ("c", "d")])
    said = report.memory_finding(table)
    assert "a, b: reference / ours 45 / 47 MiB, 27 of it" in said and "1/4" in said and "c, d" not in said
    assert report.memory_finding(table[1:]) == "No bar of memory is missed."
