"""Trained attention in the reports, from the maps that the evaluation of a row kept (`mechanism.npz`).

Every function takes a `Report` and returns a figure, a table or a sentence for its notebook; where the profile lacks
the row that it needs it says so instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Image, Markdown

from ..models.enlca import attention
from ..models.graph_prior.mutual_information import mutual_information, normal_scores, scores_of_positions
from . import plots, statistics, tables, text
from .study import NotRun, Report

Shown = Image | Markdown


def _or_not_run(function: Callable[..., Shown]) -> Callable[..., Shown]:
    @functools.wraps(function)
    def shown(*args, **options) -> Shown:
        try:
            return function(*args, **options)
        except NotRun as error:
            return Markdown(str(error))

    return shown


def _photograph(seen: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    return seen["photograph"] / 255, [(int(row), int(column)) for row, column in seen["points"]]


# -- DAGL -----------------------------------------------------------------------------------------------------------


@_or_not_run
def dagl_neighbours(report: Report, name: str) -> Shown:
    """The patches that weigh most for three pixels, first head of the first stage."""
    seen = report.seen(name)
    weights = seen["weights"]
    held = text.listed([plots.holding(of_pixel) for of_pixel in weights])
    drawn = plots.attention(*_photograph(seen), weights)
    return report.show(drawn, "neighbours", f"Neighbours of three pixels by weight: {held} of it.", photographs=True)


@_or_not_run
def dagl_kept(report: Report, name: str) -> Shown:
    """How many neighbours each patch keeps, as a map."""
    seen = report.seen(name)
    photograph, kept = _photograph(seen)[0], seen["kept"]
    alt = (
        f"{kept.mean():.0f} neighbours kept on average, {kept.min()} to {kept.max()}, of {photograph.size} candidates."
    )
    return report.show(plots.heat(kept, "neighbours kept", photograph), "kept", alt, photographs=True)


@_or_not_run
def dagl_edges(report: Report, name: str) -> Shown:
    """Whether patches at edges keep fewer neighbours, as the paper says: rank correlation with the mean gradient around
    each query."""
    seen = report.seen(name)
    photograph, kept = _photograph(seen)[0], seen["kept"]
    gradient = F.adaptive_avg_pool2d(torch.from_numpy(np.hypot(*np.gradient(photograph)))[None], kept.shape)[0].numpy()
    if kept.std() == 0:
        return Markdown(f"Every patch keeps {kept.flat[0]:.0f} of {photograph.size} candidates.")
    found = pd.Series(gradient.ravel()).corr(pd.Series(kept.ravel()), method="spearman")
    said = "fewer" if found < -0.1 else "more" if found > 0.1 else "neither more nor fewer"
    return Markdown(
        f"A patch keeps {kept.mean():.0f} neighbours on average, {kept.min():.0f} to {kept.max():.0f}, of "
        f"{photograph.size} candidates. Where the gradient is strong it keeps {said} (rank correlation {found:+.2f} "
        "over the patches of this photograph); the paper says fewer."
    )


@_or_not_run
def dagl_places(report: Report) -> Shown:
    """How many places hold nine tenths of the weight of three pixels, for every row that has weights."""
    kept = report.all_seen(report.study.experiments)
    held = {
        report.labels[name]: (report.modules[name], [plots.places_holding(w) for w in seen["weights"]])
        for name, seen in kept.items()
        if "weights" in seen
    }
    told = "; ".join(f"{label}: {text.listed([*map(str, places)])}" for label, (_, places) in held.items())
    drawn = plots.points(held, "places that hold 90 % of the weight")
    return report.show(drawn, "places", f"How many places hold 90 % of the weight of three pixels. {told}.")


# -- PANet ----------------------------------------------------------------------------------------------------------


def _levels(seen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix("map_"): seen[key] for key in seen if key.startswith("map_")}


def _shares(report: Report) -> tuple[dict[str, pd.Series], dict[str, pd.Series]]:
    """Per network of several levels the share of the attention that each level gets, and its share of the pixels."""
    shares, uniform = {}, {}
    for name, seen in report.all_seen(report.study.experiments).items():
        levels = _levels(seen)
        if len(levels) > 1:
            scales = [float(scale) for scale in levels]
            pixels = pd.Series([grid.shape[-2] * grid.shape[-1] for grid in levels.values()], scales)
            title = f"{report.labels[name]}, {report.task_title(name)}"
            shares[title] = pd.Series(seen["mass"].mean(0), scales)
            uniform[title] = pixels / pixels.sum()
    return shares, uniform


@_or_not_run
def panet_mass(report: Report) -> Shown:
    """The share of the attention that each level of the pyramid gets."""
    shares, uniform = _shares(report)
    if not shares:
        return Markdown("No network whose levels could be shown has been run in this profile.")
    return report.show(
        plots.masses(shares, uniform), "mass", "Share of the attention per level, beside uniform shares."
    )


@_or_not_run
def panet_ratio(report: Report) -> Shown:
    """Each level's share of the attention over its share of the pixels."""
    shares, uniform = _shares(report)
    ratio = {name: {f"{s:g}": text.number(v) for s, v in (shares[name] / uniform[name]).items()} for name in shares}
    if not ratio:
        return Markdown("")
    return Markdown(text.table(ratio, "scale"))


@_or_not_run
def panet_attention(report: Report, name: str) -> Shown:
    """Attention of three pixels at every level."""
    seen = report.seen(name)
    levels = {scale: grid[0] for scale, grid in _levels(seen).items()}
    drawn = plots.pyramid(*_photograph(seen), levels)
    return report.show(drawn, "attention", "Pixels that weigh most for three pixels, at every level.", photographs=True)


@_or_not_run
def panet_holding(report: Report) -> Shown:
    """How many pixels of all levels hold nine tenths of a chosen pixel's attention."""
    rows = {}
    for name, seen in report.all_seen(report.study.experiments).items():
        if not (levels := _levels(seen)):
            continue
        flat = [grid[0].reshape(len(seen["points"]), -1) for grid in levels.values()]
        together = np.concatenate(flat, axis=1)
        counts = ", ".join(str(plots.places_holding(weights)) for weights in together)
        title = f"{report.labels[name]} ({report.task_title(name)})"
        rows[title] = {"pixels that hold 90 %": counts, "of": together.shape[1]}
    return Markdown(text.table(rows) if rows else "")


# -- ENLCA ----------------------------------------------------------------------------------------------------------

ENLCA = "enlca_sr_x4"
KINDS = {"orthogonal": "orthogonal, as released", "random_signs": "orthogonal, random signs", "gaussian": "Gaussian"}

#: The panels of `enlca_gain`: the option that is varied, and the row that the variants start from.
VARIED = {
    "amplification k, ENLCN": ("k", ENLCA),
    "amplification k, exact attention in the common trunk": ("k", "enlca_gray_denoise_25-common_trunk_exact"),
    "random features m, ENLCN": ("features", ENLCA),
    "random features m, common trunk": ("features", "enlca_gray_denoise_25-common_trunk_no_contrastive_loss"),
}


def _by(report: Report, start: str, option: str) -> dict[float, str]:
    """The rows that differ from row `start` in one option alone, by its value."""
    full, found = report.resolved[start].options, {}
    for name in report.tasks[report.task_title(start)]:
        options = report.resolved[name].options
        if report.modules[name] == "enlca" and {
            key for key in {*full, *options} if full.get(key) != options.get(key)
        } <= {option}:
            found[float(options.get(option, inspect.signature(attention).parameters[option].default))] = name
    return dict(sorted(found.items()))


@_or_not_run
def enlca_gain(report: Report) -> Shown:
    """Gain on the trunk without attention for every amplification k and every number m of random features."""
    panels = {}
    for title, (option, start) in VARIED.items():
        trunk, rows = f"edsr_{report.resolved[start].task.name}", _by(report, start, option)
        found = {x: tables.gains(report.images, name, trunk) for x, name in rows.items()}
        gains = {x: one.set_index(["set", "image"]).gain for x, one in found.items() if not one.empty}
        if len(gains) > 1:
            acts = any(report.tested[rows[x]] for x in gains)
            panels[title + ("" if acts else plots.IDLE)] = pd.DataFrame(gains)
    if not panels:
        raise NotRun("These rows were not run with the same seeds in this profile.")
    alt = "Gain on the trunk without attention against k and against m; the claims have the numbers."
    return report.show(plots.along(panels, "gain on no attention (dB)", "enlca"), "amplification", alt)


@_or_not_run
def enlca_attention(report: Report, kind: str) -> Shown:
    """The pixels that weigh most for three pixels in the middle module. kind: exact or features."""
    seen = report.seen(ENLCA)
    maps = seen[kind][len(seen["k"]) // 2]
    held = text.listed([plots.holding(of_pixel) for of_pixel in maps])
    drawn = plots.attention(*_photograph(seen), maps)
    return report.show(drawn, f"attention_{kind}", f"Attention of three pixels: {held}.", photographs=True)


@_or_not_run
def enlca_entropy(report: Report) -> Shown:
    """Entropy of each pixel's weights in networks trained with each k, by the softmax and by the features."""
    first, by_k = report.seen(ENLCA), _by(report, ENLCA, "k")
    seen = {k: report.seen(name) for k, name in by_k.items()}
    sharpness = {
        f"module {module + 1}": {
            kind: {k: kept[f"entropy_{kind}"][module].ravel() for k, kept in seen.items()}
            for kind in ("exact", "features")
        }
        for module in range(len(first["k"]))
    }
    pixels = first["entropy_exact"][0].size
    drawn = plots.quartiles(sharpness, "amplification k", "entropy (nats)", ("log HW", np.log(pixels)), "enlca")
    return report.show(drawn, "entropy", "Entropy of the weights against k, medians and quartiles over pixels.")


@_or_not_run
def enlca_sharpness(report: Report) -> Shown:
    """How many pixels share the weight in the middle module, e to the median entropy."""
    first = report.seen(ENLCA)
    middle = len(first["k"]) // 2
    rows = {}
    for k, name in _by(report, ENLCA, "k").items():
        seen = report.seen(name)
        rows[f"k = {k:g}"] = {
            kind: f"{np.exp(np.median(seen[f'entropy_{kind}'][middle])):.0f}" for kind in ("exact", "features")
        }
    pixels = first["entropy_exact"][0].size
    head = f"Pixels that share the weight in the middle module (e to the median entropy), of {pixels}:"
    return Markdown(f"{head}\n\n{text.markdown(pd.DataFrame(rows).rename_axis('by'))}")


def _errors(seen: Mapping[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    """Relative error of the attention's output per kind of features: a row per k, a column per m."""
    k, m = seen["at_k"][0], seen["at_m"][0]
    return {title: pd.DataFrame(np.median(seen[f"error_{kind}"], axis=0), k, m) for kind, title in KINDS.items()}


@_or_not_run
def enlca_error(report: Report, against: str) -> Shown:
    """Relative error of the attention's output by random features, against k or against m."""
    errors, label = _errors(report.seen(ENLCA)), "relative error of the output"
    if against == "k":
        drawn = plots.curves(errors, "amplification k", label, "features m", yscale="log")
    else:
        turned = {title: table.T for title, table in errors.items()}
        drawn = plots.curves(turned, "features m", label, "k", xscale="log", yscale="log")
    return report.show(drawn, f"error_by_{against}", f"Relative error of the output against {against}.")


def _variances(seen: Mapping[str, np.ndarray]) -> tuple[int, dict[str, pd.DataFrame]]:
    """The number of features of the network, and logarithms of relative variances against k: of the kernel, with what
    is expected over all draws, and of the output."""
    used = list(seen["at_m"][0]).index(int(seen["m"][0]))
    kernel = {title: seen[f"log_variance_{kind}"] for kind, title in KINDS.items()}
    output = {title: 2 * np.log(seen[f"error_{kind}"]) for kind, title in KINDS.items()}
    parts = {"kernel": {**kernel, "over all draws": seen["log_variance_expected"]}, "output": output}
    return int(seen["m"][0]), {
        part: pd.DataFrame({n: np.median(v, axis=0)[:, used] for n, v in found.items()}, seen["at_k"][0])
        for part, found in parts.items()
    }


@_or_not_run
def enlca_variance(report: Report) -> Shown:
    """The logarithm of the relative variance against k: a straight line where it grows exponentially."""
    features, logarithms = _variances(report.seen(ENLCA))
    drawn = plots.curves(logarithms, "amplification k", "log of the relative variance", f"{features} features")
    return report.show(drawn, "variance", "Logarithm of the relative variance against k.")


@_or_not_run
def enlca_growth(report: Report) -> Shown:
    """Whether the variance grows exponentially in k, per kind of features."""
    _, logarithms = _variances(report.seen(ENLCA))
    columns = pd.concat(logarithms, axis=1)
    k, half = list(columns.index), len(columns) // 2
    rows = {}
    for (part, kind), values in columns.items():
        found = statistics.growth(k, values)
        rows[f"{part}, {kind}"] = {
            "exponential": "yes" if found["exponential"] else "no",
            "growth per unit of k": text.number(found["factor"]),
            f"up to k = {k[half - 1]}": text.number(found["factor_low"]),
            f"from k = {k[-half]}": text.number(found["factor_high"]),
            "R² of the line": text.number(found["r2"]),
        }
    return Markdown(text.table(rows, "variance of"))


# -- IGNN -----------------------------------------------------------------------------------------------------------


@_or_not_run
def ignn_matches(report: Report, name: str) -> Shown:
    """For three patches the larger patches that stand for their neighbours, with edge weights at both resolutions."""
    seen, scale = report.seen(name), report.resolved[name].task.degradation.scale
    low, high = seen["weight_lr"], seen["weight_hr"]
    titles = [[f"{a:.2f} / {b:.2f}" for a, b in zip(*pair, strict=True)] for pair in zip(low, high, strict=True)]
    drawn = plots.matches(seen["photograph"], seen["query"], seen["match"], titles, scale, 3 * scale)
    return report.show(drawn, "matches", "Three patches and the larger patches that they match.", photographs=True)


@_or_not_run
def ignn_neighbours(report: Report, name: str) -> Shown:
    """Distances and edge weights of the neighbours by rank."""
    seen = report.seen(name)
    low, high = seen["weight_lr"], seen["weight_hr"]
    panels = {"distance": seen["distance"], "weight, small image": low, "weight, large image": high}
    return report.show(plots.by_rank(panels, 1 / low.shape[1]), "neighbours", "Distance and weight by rank.")


@_or_not_run
def ignn_weights(report: Report, name: str) -> Shown:
    """Whether the learned edge weights tell near neighbours from far ones, in a sentence."""
    seen = report.seen(name)
    distance = seen["distance"]
    both = [seen[key] for key in ("weight_lr", "weight_hr")]
    first, last = (np.mean([weights[:, rank].mean() for weights in both]) for rank in (0, -1))
    further = (distance[:, -1] / distance[:, 0]).mean()
    return Markdown(
        f"The farthest of {distance.shape[1]} neighbours is {further:.1f} times as far as the nearest, and its edge "
        f"weight is {last:.3f} against {first:.3f} on average: learned weights "
        + ("hardly tell neighbours apart." if abs(first - last) < 0.01 else "depend on the distance.")
    )


# -- a prior for deep graphs ----------------------------------------------------------------------------------------


@_or_not_run
def prior_stages(report: Report, names: list[str]) -> Shown:
    """Where the first and the last stage look, for each row."""
    kept = report.all_seen(names)
    if not kept:
        raise NotRun("None of these rows was run in this profile.")
    maps = {
        f"{report.labels[name]}: {stage} stage": seen[key]
        for name, seen in kept.items()
        for key, stage in (("first", "first"), ("last", "last"))
    }
    drawn = plots.influences(*_photograph(next(iter(kept.values()))), maps, "weight")
    alt = f"The weights of three pixels in both stages of {text.listed([report.labels[name] for name in kept])}."
    return report.show(drawn, "stages", alt, photographs=True)


@_or_not_run
def prior_gates(report: Report) -> Shown:
    """What the gates have learned, and how much of their weight both stages give to the same keys."""
    rows = {
        report.labels[name]: {
            "gate": text.listed([text.number(gate) for gate in seen["gates"]]),
            "weight on the same keys": f"{_shared(seen['first'], seen['last']):.0%}",
        }
        for name, seen in report.all_seen(report.study.experiments).items()
        if "gates" in seen
    }
    if not rows:
        raise NotRun("None of these rows was run in this profile.")
    return Markdown(text.table(rows))


def _shared(first: np.ndarray, last: np.ndarray) -> float:
    """The weight that two maps (points, H, W) of sum 1 give to the same places, the mean over points."""
    first, last = (maps / maps.sum((1, 2), keepdims=True).clip(1e-12) for maps in (first, last))
    return float(np.minimum(first, last).sum((1, 2)).mean())


def information_check(report: Report) -> Shown:
    """The estimate of mutual information on made-up variables whose mutual information is known, in nats: on pairs with
    as many independent samples as a position has, and on the positions of two smooth fields with as many channels."""
    pairs, side = 500, 48
    channels = report.resolved[report.study.experiments[0]].options.get("width", 64)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, pairs, 1, 9 * channels, generator=generator, dtype=torch.float64)
    fields = torch.randn(2, channels, side, side, generator=generator, dtype=torch.float64)
    smooth, levels = F.avg_pool2d(fields, 3, 1), torch.arange(channels)[:, None, None]  # of channels apart from another
    made = {}
    for rho in (0.0, 0.3, 0.6, 0.9):
        truth, rest = 0.5 * np.log(1 / (1 - rho**2)), np.sqrt(1 - rho**2)
        made[f"normal, correlation {rho:g}"] = (truth, *map(normal_scores, (first, rho * first + rest * second)))
        both = torch.stack([smooth[0] + levels, rho * smooth[0] + rest * smooth[1] + levels])
        made[f"two fields, correlation {rho:g}"] = (truth, *scores_of_positions(both)[:, ::7, None])
    x, noise = (torch.rand(pairs, 1, 9 * channels, generator=generator, dtype=torch.float64) for _ in range(2))
    folded = ((2 * x - 1).abs() + noise / 4) % 1
    made["a fold with noise, without correlation"] = (np.log(4), normal_scores(x), normal_scores(folded))
    rows = {}
    for name, (truth, one, other) in made.items():
        found = mutual_information(one, other)
        rows[name] = {"true": f"{truth:.3f}", "estimate, mean": f"{found.mean():.3f}", "spread": f"{found.std():.3f}"}
    return Markdown(text.table(rows, "made-up variables"))


# -- LIR ------------------------------------------------------------------------------------------------------------

OPERATORS = ["Sobel x", "Sobel y", "Laplace", "edge", "Sobel xy", "Sobel yx", "Roberts x", "Roberts y", "high-pass"]


@_or_not_run
def lir_filters(report: Report, name: str) -> Shown:
    """The mixtures of all adaptive filters."""
    seen, blocks = report.seen(name), report.resolved[name].options["blocks"]
    places = [(level, block) for level, count in enumerate(blocks, 1) for block in range(1, count + 1)]
    rows = [f"level {level}, block {block}, stage {stage}" for level, block in places for stage in range(2, 6)]
    drawn = plots.mixtures(seen["alpha"], seen["beta"], rows, OPERATORS)
    return report.show(drawn, "filters", "Weights of the fixed operators in every adaptive filter.")


def _taken(report: Report, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Photograph, input and restoration of a row, and the true, the subtracted and the whole removed degradation."""
    seen = report.seen(name)
    clean = seen["photograph"] / 255
    given, restored, subtracted = (np.moveaxis(seen[key][0], 0, 2) for key in ("degraded", "restored", "degradation"))
    taken = {"truth": given - clean, "subtracted": subtracted, "taken away": given - restored}
    return {"clean": clean, "input": given, "restored": restored}, taken


def _correlations(taken: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {key: float(np.corrcoef(one.ravel(), taken["truth"].ravel())[0, 1]) for key, one in taken.items()}


@_or_not_run
def lir_degradations(report: Report, names: list[str]) -> Shown:
    """For each row: photograph, input, restoration, and three degradations around gray with their correlations."""
    from ..figures import gallery

    shown: dict[str, np.ndarray] = {}
    for name in names:
        pictures, taken = _taken(report, name)
        task, found = report.task_title(name), _correlations(taken)
        shown |= {f"{task}: {key}": picture for key, picture in pictures.items()}
        shown |= {f"{key}, {found[key]:+.2f} ({task})": 0.5 + one for key, one in taken.items()}
    return report.show(
        gallery(shown, columns=3, side=plots.WIDTH / 3), "degradations", "What LIR subtracts.", photographs=True
    )


@_or_not_run
def lir_correlations(report: Report, names: list[str]) -> Shown:
    """Correlations of the degradations with the true one."""
    rows = {}
    for name in names:
        found = _correlations(_taken(report, name)[1])
        rows[report.task_title(name)] = {k: text.number(v, 3, True) for k, v in found.items() if k != "truth"}
    return Markdown(text.table(rows, "correlation with the true degradation"))
