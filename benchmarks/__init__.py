"""Costs of the attention modules, next to those of their definitions: `python -m benchmarks`, `make benchmark`.

`cases` says which modules are measured and `measure` how; `parts` measures, `report` makes the tables and figures of
notebooks/benchmark.ipynb.
"""
