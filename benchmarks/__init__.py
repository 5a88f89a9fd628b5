"""What the attention modules cost beside their reference formulations: `python -m benchmarks`, `make benchmark`.

`reference/` says plainly what is computed, `cases` what is compared and `measure` how; `parts` measures, `report` makes
the tables and figures of notebooks/benchmark.ipynb.
"""
