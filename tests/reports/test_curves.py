"""Differences along the training: what the last doubling of the steps says."""

import numpy as np
import pandas as pd
import pytest

from lib.reports import curves, tables


def made(psnr_by_step: dict[int, float], name: str, scatter: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(name, seed, step, psnr) for step, psnr in psnr_by_step.items() for seed in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=curves.COLUMNS)
    return table.assign(psnr=table.psnr + scatter * rng.standard_normal(len(table)))


@pytest.mark.parametrize(
    ("half", "end", "scatter", "outcome"),
    [
        (0.1, 0.3, 0.001, curves.GROWING),
        (-0.1, -0.3, 0.001, curves.GROWING),
        (-0.1, 0.3, 0.001, curves.TURNED),
        (0.2, -0.1, 0.001, curves.TURNED),
        (0.01, 0.02, 0.001, curves.SETTLED),
        (0.3, 0.1, 0.001, curves.SHRINKING),
        (-0.3, -0.1, 0.001, curves.SHRINKING),
        (0.3, 0.3, 0.001, curves.SETTLED),
        (0.3, 0.3, 0.3, curves.OPEN),
    ],
)
def test_outcomes(half, end, scatter, outcome):
    trunk, row = {250: 20, 500: 28, 1000: 30}, {250: 20, 500: 28 + half, 1000: 30 + end}
    table = pd.concat([made(trunk, "trunk"), made(row, "row", scatter)])
    found = curves.outcomes(curves.differences(table, ["row", "absent"], "trunk"), delta=0.05)
    assert found.outcome.to_dict() == {"row": outcome}
    assert found.loc["row", ["half", "end"]].tolist() == pytest.approx([half, end], abs=2 * scatter)


def test_only_seeds_and_steps_of_both_rows_are_compared():
    row = made({250: 21, 500: 29, 1000: 31}, "row")
    trunk = made({500: 28, 1000: 30}, "trunk")
    table = pd.concat([row[row.seed != 2], trunk])
    [found] = curves.differences(table, ["row"], "trunk").values()
    assert found.index.tolist() == [500, 1000] and found.columns.tolist() == [1, 3] and (found == 1).all(axis=None)
    assert curves.differences(table, ["row"], "other") == {} and curves.differences(row, ["row"], "trunk") == {}


def test_one_seed_leaves_it_open():
    table = pd.concat([made({500: 28, 1000: 30}, "trunk"), made({500: 29, 1000: 31}, "row")])
    found = curves.differences(table[table.seed == 1], ["row"], "trunk")
    assert curves.outcomes(found, 0.05).outcome.tolist() == [curves.OPEN]


def test_rows_without_a_curve_are_left_out(tmp_path):
    for name, content in {"a": "step,psnr,seed\n500,28.5,1\n", "empty": "step,psnr,seed\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "validation.csv").write_text(content)
    one = tables.of_rows(tmp_path, ["a", "empty", "absent"], "validation.csv", curves.COLUMNS)
    assert one.to_numpy().tolist() == [["a", 1, 500, 28.5]]
    assert tables.of_rows(tmp_path, ["absent"], "validation.csv", curves.COLUMNS).columns.tolist() == curves.COLUMNS
