"""What reports say of trained attention, from made-up maps."""

import numpy as np

from lib.reports import mechanisms

DAGL, EXACT = "dagl_gray_denoise_25", "enlca_gray_denoise_25-common_trunk_exact"


def keep(made, name, **maps) -> None:
    np.savez(made.params.results("evaluate", name, "mechanism.npz"), **maps)


def test_neighbours_are_compared_with_the_gradient_around_their_own_patch(made_up):
    made = made_up()
    made.row(DAGL, 30.0)
    photograph, kept = np.zeros((48, 48), np.uint8), np.full((16, 16), 900)
    photograph[:, 24:] = np.random.default_rng(0).integers(0, 256, (48, 24))
    kept[:, 8:] = 100
    keep(made, DAGL, photograph=photograph, kept=kept, points=[])
    assert "it keeps fewer (rank correlation -0.9" in mechanisms.dagl_edges(made.report("dagl_ablation"), DAGL).data
    keep(made, DAGL, photograph=photograph, kept=kept[:, ::-1], points=[])
    assert "it keeps more (rank correlation +0.9" in mechanisms.dagl_edges(made.report("dagl_ablation"), DAGL).data


def test_amplifications_are_shown_of_the_network_that_was_run(made_up):
    made = made_up("cpu")
    assert "ENLCN was not run" in mechanisms.enlca_sharpness(made.report("enlca_amplification")).data
    made.row("edsr_gray_denoise_25", 29.0)
    rows = {6: EXACT, 1: f"{EXACT}_k1", 25: f"{EXACT}_k25", 7: f"{EXACT.removesuffix('_exact')}_m512"}
    for k, name in rows.items():
        made.row(name, 30.0, acts=0.3)
        entropies = {f"entropy_{kind}": np.full((1, 4, 4), np.log(16 / k)) for kind in ("exact", "features")}
        keep(made, name, k=np.array([k]), m=np.array([128]), **entropies)
    report = made.report("enlca_amplification")
    said = mechanisms.enlca_sharpness(report).data
    assert [line.split(" | ")[1:] for line in said.splitlines()[-2:]] == [["16", "3", "1 |"]] * 2
    assert mechanisms.enlca_gain(report).data[:4] == b"\x89PNG"
