"""Figures: what is drawn where, from small arrays."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from lib.reports import plots


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def offsets(axis) -> np.ndarray:
    """Centres (column, row) of an axis' dots."""
    return np.asarray(axis.collections[0].get_offsets())


@pytest.mark.parametrize("photograph", [np.zeros((8, 12)), np.zeros((16, 24, 3))])
def test_attention_marks_the_largest_weights_on_the_maps_grid(photograph):
    maps = np.zeros((1, 8, 12))
    maps[0, 2, 5], maps[0, 7, 11], maps[0, 1, 1] = 0.625, 0.3125, 0.0625
    drawn = plots.attention(photograph, [(4, 6)], maps, shown=2)
    shown = drawn.axes[1]
    assert shown.images[0].get_extent() == [-0.5, 11.5, 7.5, -0.5]
    np.testing.assert_array_equal(offsets(shown), [[5, 2], [11, 7]])
    areas = shown.collections[0].get_sizes()
    assert areas[1] / areas[0] == pytest.approx(0.5)
    assert shown.get_title() == "pixel 1: 2 hold 90 %"
    assert [line.get_xydata().tolist() for line in shown.lines] == [[[6, 4]]]


def test_a_pyramid_has_a_row_per_point_and_a_column_per_level():
    full, half = np.zeros((2, 8, 12)), np.zeros((2, 4, 6))
    full[:, 0, 0], half[0, 3, 5], half[1, 1, 2] = [0.75, 0.5], 0.25, 0.5
    drawn = plots.pyramid(np.zeros((16, 24, 3)), [(4, 6), (1, 1)], {"1": full, "0.5": half})
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles == ["x 1: 75%", "x 0.5: 25%", "x 1: 50%", "x 0.5: 50%"]
    coarse = drawn.axes[1]
    assert coarse.images[0].get_extent() == [-0.5, 5.5, 3.5, -0.5]
    np.testing.assert_array_equal(offsets(coarse), [[5, 3]])
    assert coarse.collections[0].get_sizes()[0] / drawn.axes[0].collections[0].get_sizes()[0] == pytest.approx(1 / 3)
    np.testing.assert_allclose(coarse.lines[0].get_xydata(), [[2.75, 1.75]])  # (4.5 / 8) * 4 - .5, (6.5 / 12) * 6 - .5


def test_masses_are_bars_with_a_line_for_uniform_attention():
    shares = {"two": pd.Series([0.7, 0.3], [1, 0.5]), "three": pd.Series([0.2, 0.3, 0.5], [1, 0.8, 0.5])}
    uniform = {"two": pd.Series([0.8, 0.2], [1, 0.5]), "three": pd.Series([0.5, 0.3, 0.2], [1, 0.8, 0.5])}
    axis = plots.masses(shares, uniform).axes[0]
    bars = [bar for bar in axis.patches if bar.get_width()]
    assert [bar.get_width() for bar in bars] == [0.7, 0.3, 0.2, 0.3, 0.5]
    assert bars[1].get_facecolor() == bars[4].get_facecolor() != bars[0].get_facecolor()  # one colour per scale
    lines = np.concatenate([segment for lines in axis.collections for segment in lines.get_segments()])
    assert lines[::2, 0].tolist() == [0.8, 0.2, 0.5, 0.3, 0.2]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["two", "three"]
    assert [text.get_text() for text in axis.figure.legends[0].get_texts()] == [
        "uniform attention", "scale 1", "scale 0.8", "scale 0.5",
    ]  # fmt: skip


def test_along_draws_every_photograph_and_the_mean():
    table = pd.DataFrame({1.0: [0.1, 0.3], 6.0: [0.2, 0.6]}, index=["a", "b"])
    axis = plots.along({"amplification k": table}, "gain (dB)", "enlca").axes[0]
    _, *points, mean = axis.lines
    assert sorted(y for line in points for y in line.get_ydata()) == [0.1, 0.2, 0.3, 0.6]
    np.testing.assert_allclose(mean.get_xydata(), [[1, 0.2], [6, 0.4]])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("amplification k", "gain (dB)")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "6"]
    many = pd.DataFrame({1.0: np.arange(21.0), 6.0: np.arange(21.0)})
    band = plots.along({"k": many}, "gain (dB)", "enlca").axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (5, 15)


def test_differences_are_dots_where_photographs_are_few_and_shapes_where_they_are_many():
    bounds = pd.DataFrame({"difference": [0.5], "low": [0.25], "high": [0.75]}, ["panet_t"])
    labels = {"panet_t": "PANet"}
    few, many = (pd.DataFrame({"panet_t": np.linspace(0, 1, n)}) for n in (5, 40))
    left, right = (
        plots.differences({"t": table}, bounds, labels, {"panet_t": "panet"}).axes[0] for table in (few, many)
    )
    assert len(left.lines[1].get_xdata()) == 5 and not left.collections
    [shape] = right.collections
    assert shape.get_facecolor()[0, :3] == pytest.approx(plots.COLORS["panet"])
    for axis in (left, right):
        assert axis.lines[-2].get_xdata().tolist() == [0.25, 0.75] and axis.lines[-1].get_xdata() == [0.5]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["PANet"]


def test_a_strip_shows_the_busiest_part_and_its_errors():
    clean = np.full((64, 64), 0.5)
    clean[30:50, 8:28] = np.random.default_rng(0).random((20, 20))
    top, left = plots.busiest(clean, 24)
    assert 26 <= top <= 30 and 4 <= left <= 8
    figure = plots.strip(clean, {"noisy": clean + 0.1, "restored": clean.copy()})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["clean, and the\npart shown", "clean", "noisy\n20.00 dB", "restored\n100.00 dB"]
    assert not figure.axes[4].images and not figure.axes[5].images
    errors = [axis.images[0].get_array() for axis in figure.axes[6:8]]
    assert [round(float(error.max()), 6) for error in errors] == [0.1, 0]


def test_a_map_without_weight_is_named_so():
    assert plots.places_holding(np.zeros((8, 8))) == 0 and plots.holding(np.zeros((8, 8))) == "no weight anywhere"
    assert plots.places_holding(np.ones((2, 5))) == 9 and plots.holding(np.eye(1)) == "1 holds 90 %"
    drawn = plots.influences(np.zeros((8, 8)), [(1, 1)], {"still": np.zeros((1, 8, 8)), "one": np.eye(8)[None]})
    titles = [axis.get_title("left") for axis in drawn.axes[:2]]
    assert titles == ["still\nno influence", "one\n8 pixels hold 90 %"]


def test_gains_have_a_panel_each_and_a_line_where_there_is_a_trend():
    found = pd.DataFrame({"self_similarity": [0.5, 1.0], "gain": [0.0, 1.0]})
    drawn = plots.against_similarity({"a": ("panet", found, (2.0, 1.0, 3.0)), "b": ("other", found, None)})
    left, right = drawn.axes
    assert len(left.lines) == 5 and len(right.lines) == 2
    np.testing.assert_allclose(left.lines[2].get_ydata(), [0, 1])


def test_fields_start_at_no_change():
    drawn = plots.fields({"t": {"PANet": ("panet", pd.Series([30.0, 30.5], [24, 48]))}})
    assert drawn.axes[0].lines[1].get_xydata().tolist() == [[24, 0], [48, 0.5]]
    assert drawn.axes[0].lines[1].get_color() == plots.COLORS["panet"]


def test_differences_along_the_training_have_a_band():
    curve = pd.DataFrame({"mean": [0.1, 0.4], "low": [0.0, 0.2], "high": [0.2, 0.6]}, index=[500, 1000])
    axis = plots.along_training({"task": {"PANet": ("panet", curve)}}).axes[0]
    assert axis.lines[1].get_xydata().tolist() == [[500, 0.1], [1000, 0.4]]
    assert axis.lines[1].get_color() == plots.COLORS["panet"]
    band = axis.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.y0, band.x1, band.y1) == (500, 0, 1000, 0.6)
    assert axis.get_xlabel() == "training step"


def test_dots_have_the_colour_of_their_module():
    axis = plots.points({"DAGL": ("dagl", [1, 10]), "trunk": ("none", [3])}, "places").axes[0]
    assert [line.get_color() for line in axis.lines] == [plots.COLORS["dagl"], plots.COLORS["none"]]


@pytest.mark.parametrize("count", [1, 3, 11])
def test_words_of_a_figure_overlap_neither_each_other_nor_a_panel(count):
    plots.style()
    psnr = pd.Series([30.0, 30.5, 31], [32, 64, 128])
    rows = [{f"PANet's pyramid in the common trunk, part {n}": ("panet", psnr)} for n in range(count)]
    drawn = plots.fields({f"colour denoising, sigma {n}": row for n, row in enumerate(rows)})
    drawn.canvas.draw()
    words = [text for axis in drawn.axes for text in (axis.xaxis.label, axis._left_title)]
    words += [*drawn.legends[0].get_texts(), *drawn.texts]
    boxes = [axis.get_window_extent() for axis in drawn.axes]
    for text in words:
        box = text.get_window_extent()
        assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1, text
        assert not text.get_text() or not any(box.overlaps(other) for other in boxes), text
        boxes.append(box)


def test_names_of_rows_do_not_overlap_however_long():
    plots.style()
    long = "attention of a certain kind in the common trunk, one option, and another option, and a third one"
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 6)), columns=list("abcdef"))
    bounds = pd.DataFrame({"difference": 0.0, "low": -1.0, "high": 1.0}, index=table.columns)
    drawn = plots.differences({"t": table}, bounds, dict.fromkeys("abcdef", long), dict.fromkeys("abcdef", "panet"))
    drawn.canvas.draw()
    boxes = [label.get_window_extent() for label in drawn.axes[0].get_yticklabels()]
    assert all(a.y0 > b.y1 for a, b in itertools.pairwise(boxes))


def test_cost_has_one_look_per_title_in_all_panels():
    labels = {"edsr_a": "EDSR", "panet_a": "PANet", "panet_b": "PANet"}
    numbers = {"psnr": [30.0, 31, 32], "multiply_adds": 1e9, "peak_bytes": 2**21, "parameters": [1, 2, 4]}
    tasks, modules = {name: name[-1] for name in labels}, dict.fromkeys(labels, "panet") | {"edsr_a": "none"}
    drawn = plots.quality_against_cost(pd.DataFrame(numbers, [*labels]), labels, tasks, modules)
    (first, second), (of_memory, _), (third,), _ = (axis.lines for axis in drawn.axes)
    assert first.get_xydata().tolist() == [[1, 30]] and of_memory.get_xydata().tolist() == [[2, 30]]
    assert second.get_color() == third.get_color() != first.get_color()
    assert second.get_markersize() < third.get_markersize()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["EDSR", "PANet"]


def test_attention_that_does_not_act_has_open_marks():
    psnr = pd.Series([30.0, 30.1], [32, 64])
    rows = {"PANet": ("panet", psnr), f"PANet{plots.IDLE}": ("panet", psnr - 1)}
    drawn = plots.fields(
        {"acts": {"PANet": rows["PANet"]}, "does not": {f"PANet{plots.IDLE}": rows[f"PANet{plots.IDLE}"]}}
    )
    full, empty = (axis.lines[1] for axis in drawn.axes)
    assert full.get_color() == empty.get_color() == full.get_markerfacecolor() != empty.get_markerfacecolor() == "white"
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["PANet", "open: does not act"]


def test_every_line_of_the_fields_is_inside_its_panel():
    far = {
        "left": {"a": ("dagl", pd.Series([30.0, 30.02], [32, 64]))},
        "right": {"b": ("lir", pd.Series([30.0, 29.9], [32, 64]))},
    }
    for axis in plots.fields(far).axes:
        low, high = axis.get_ylim()
        assert all(low < value < high for line in axis.lines for value in line.get_ydata())


def test_shades_that_a_legend_tells_apart_stay_apart_in_the_file(tmp_path):
    looks = plots._looks({f"{module} {n}": module for module in plots.COLORS for n in range(3)})
    figure, axis = plt.subplots(figsize=(3, 3))
    for place, look in enumerate(looks.values()):
        axis.axhspan(place, place + 1, color=look["color"])
    axis.set(ylim=(0, len(looks)), position=(0, 0, 1, 1))
    plots.show(figure, tmp_path / "shades", "shades")
    with PIL.Image.open(tmp_path / "shades.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    middle = pixels[:, pixels.shape[1] // 2]
    assert len(np.unique(middle, axis=0)) >= len(looks)


def test_quartiles_are_those_of_the_values():
    values = {1: np.arange(101), 6: np.arange(101) / 2}
    drawn = plots.quartiles({"module 1": {"exact": values}}, "k", "entropy (nats)", ("all alike", 120.0), "enlca")
    [container] = (axis := drawn.axes[0]).containers
    middle, _, [bars] = container.lines
    np.testing.assert_allclose(middle.get_ydata(), [50, 25])
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[25, 75], [12.5, 37.5]])
    assert axis.lines[0].get_ydata() == [120, 120]
    assert axis.get_title() == "module 1"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "6"]


def test_curves_are_the_columns_of_their_tables():
    panels = {"left": pd.DataFrame({16: [1.0, 2.0]}, [1, 10]), "right": pd.DataFrame({16: [3.0, 4.0]}, [1, 10])}
    drawn = plots.curves(panels, "k", "error", "features", yscale="log")
    assert [axis.lines[0].get_ydata().tolist() for axis in drawn.axes] == [[1, 2], [3, 4]]
    assert drawn.axes[0].lines[0].get_xdata().tolist() == [1, 10]
    assert {axis.get_yscale() for axis in drawn.axes} == {"log"}
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["1", "10"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["16"]
    assert drawn.legends[0].get_title().get_text() == "features"


def test_a_name_has_one_colour_in_all_panels_of_curves():
    kernel, output = pd.DataFrame({"a": [1, 2], "b": [2, 3], "c": [0, 1]}), pd.DataFrame({"b": [1, 2], "c": [3, 4]})
    drawn = plots.curves({"kernel": kernel, "output": output}, "k", "variance", "features")
    left, right = ([line.get_color() for line in axis.lines] for axis in drawn.axes)
    assert left[1:] == right
    assert len(set(left)) == 3
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["a", "b", "c"]


def test_matches_are_cut_from_the_photograph_and_boxed_in_it():
    photograph = np.arange(24 * 24.0).reshape(24, 24) / 24**2
    drawn = plots.matches(photograph, np.array([[2, 4]]), np.array([[[0, 0], [6, 2]]]), [["a", "b"]], 2, 6)
    whole, query, first, second = drawn.axes
    assert [box.get_bbox().bounds for box in whole.patches] == [
        (7.5, 3.5, 6, 6), (-0.5, -0.5, 12, 12), (3.5, 11.5, 12, 12),
    ]  # fmt: skip
    np.testing.assert_array_equal(query.images[0].get_array(), photograph[4:10, 8:14])
    np.testing.assert_array_equal(first.images[0].get_array(), photograph[:12, :12])
    np.testing.assert_array_equal(second.images[0].get_array(), photograph[12:, 4:16])
    assert [axis.get_title() for axis in (query, first, second)] == ["query", "a", "b"]


def test_by_rank_draws_a_line_per_query_and_uniform_beside_weights():
    panels = {"distance": np.array([[1.0, 2, 3], [2, 2, 4]]), "weight": np.array([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3]])}
    distance, weight = plots.by_rank(panels, 1 / 3).axes
    np.testing.assert_array_equal(distance.lines[1].get_xydata(), [[1, 2], [2, 2], [3, 4]])
    assert len(distance.lines) == 2 and weight.lines[2].get_ydata() == [1 / 3, 1 / 3]


def test_mixtures_are_coloured_by_how_far_they_moved():
    alpha, beta = np.array([[1.0, 1.5], [0.75, 1]]), np.array([0.0, -1])
    left, right = plots.mixtures(alpha, beta, ["level 1", "level 2"], ["Sobel", "Laplace"]).axes
    assert [text.get_text() for text in left.texts] == ["1.00", "1.50", "0.75", "1.00"]
    assert left.collections[0].get_clim() == (0, 2) and right.collections[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in left.get_yticklabels()] == ["level 1", "level 2"]
