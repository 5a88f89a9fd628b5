"""Made-up results of a profile in a temporary folder."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.params import Params
from lib.reports import tables


class MadeUp:
    """Writes `evaluate/<row>/` of made-up numbers; `params` resolves results there."""

    def __init__(self, folder, profile: str):
        self.params = Params(profile=profile)
        self.params.results = lambda *parts: folder.joinpath(*parts)  # type: ignore[method-assign]

    def row(self, name, psnr, seeds=(1, 2, 3), noise=0.01, similarity=0.0, acts=None) -> None:
        """psnr: mean over 24 photographs; similarity: dB per unit of self-similarity; acts: dB lost for a constant,
        or () for a network without attention."""
        folder = self.params.results("evaluate", name)
        folder.mkdir(parents=True, exist_ok=True)
        rng, x = np.random.default_rng(sum(name.encode())), np.linspace(0.5, 1, 24)
        pd.DataFrame(
            {"set": "one" if i % 2 else "two", "image": f"p{i}", "seed": seed, "ssim": 0.9, "input_psnr": 20.0,
             "input_psnr_unclamped": 20.0, "self_similarity": x[i], "field": 68,
             "psnr": psnr + i / 10 + similarity * (x[i] - 0.75) + offset + noise * rng.standard_normal()}
            for seed in seeds
            for offset in [noise * rng.standard_normal()]
            for i in range(24)
        ).to_csv(folder / "images.csv", index=False)  # fmt: skip
        (folder / "cost.json").write_text(json.dumps({"parameters": 1234, "multiply_adds": 2e9, "peak_bytes": 2**20}))
        if acts is not None:
            pd.DataFrame(
                {"seed": seed, "module": "a", "head": 0, "variation": 1.0, "effective_keys": 5.0,
                 "effective_share": 0.1, "same_largest": 0.1, "psnr_lost_mean": acts, "psnr_lost_zero": acts}
                for seed in seeds
            ).head(len(seeds) if acts != () else 0).to_csv(folder / "acts.csv", index=False)  # fmt: skip

    def field(self, name: str, psnr: dict[int, float]) -> None:
        """psnr: by the side of the field, of one seed."""
        rows = [{"seed": 1, "side": side, "psnr": value} for side, value in psnr.items()]
        pd.DataFrame(rows).to_csv(self.params.results("evaluate", name, "field.csv"), index=False)

    def curve(self, name: str, psnr: dict[int, float]) -> None:
        """psnr: by step; the three seeds differ by 0.001 dB, always in the same way."""
        folder = self.params.results("train", name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"step": step, "psnr": value + 0.001 * seed * (1 + len(name) % 3 * i), "seed": seed}
            for i, (step, value) in enumerate(psnr.items())
            for seed in (1, 2, 3)
        ]
        pd.DataFrame(rows).to_csv(folder / "validation.csv", index=False)

    def report(self, study: str):
        from lib.reports.study import Report

        tables.gather(self.params)
        return Report(study, self.params)


@pytest.fixture
def made(request, tmp_path):
    """`MadeUp` results of profile cpu, or of the one that is the parameter."""
    return MadeUp(tmp_path, getattr(request, "param", "cpu"))
