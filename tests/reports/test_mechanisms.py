"""What reports say of trained attention, from made-up maps."""

import numpy as np

from lib.reports import mechanisms

DAGL, EXACT = "dagl_gray_denoise_25", "enlca_gray_denoise_25-common_trunk_exact"


def keep(made, name, **maps) -> None:
    np.savez(made.params.results("evaluate", name, "mechanism.npz"), **maps)


def test_neighbours_are_compared_with_the_gradient_around_their_own_patch(made):
    made.row(DAGL, 30.0)
    photograph, kept = np.zeros((48, 48), np.uint8), np.full((16, 16), 900)
    photograph[:, 24:] = np.random.default_rng(0).integers(0, 256, (48, 24))
    kept[:, 8:] = 100
    keep(made, DAGL, photograph=photograph, kept=kept, points=[])
    assert "it keeps fewer (rank correlation -0.9" in mechanisms.dagl_edges(made.report("dagl_ablation"), DAGL).data
    keep(made, DAGL, photograph=photograph, kept=kept[:, ::-1], points=[])
    assert "it keeps more (rank correlation +0.9" in mechanisms.dagl_edges(made.report("dagl_ablation"), DAGL).data


def test_the_gain_of_every_amplification_is_shown_where_rows_were_run(made):
    made.row("edsr_gray_denoise_25", 29.0)
    for name in (EXACT, f"{EXACT}_k1"):
        assert "were not run" in mechanisms.enlca_gain(made.report("enlca_amplification")).data
        made.row(name, 30.0, acts=0.3)
    report = made.report("enlca_amplification")
    assert mechanisms._by(report, EXACT, "k") == {1: f"{EXACT}_k1", 6: EXACT, 25: f"{EXACT}_k25"}
    assert mechanisms.enlca_gain(report).data[:4] == b"\x89PNG"
    assert "ENLCN was not run" in mechanisms.enlca_sharpness(report).data
