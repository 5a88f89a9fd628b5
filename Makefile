# make repro [PROFILE=quick] [STUDY=...] [JOBS=2] [CLUSTER=auto] | test | check | lab | site | benchmark; each makes .venv on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: repro test check lab site benchmark lock
repro: .venv/ready
	python -m lib repro $(if $(PROFILE),--profile $(PROFILE)) $(if $(STUDY),--study $(STUDY)) $(if $(JOBS),--jobs $(JOBS)) $(if $(CLUSTER),--cluster $(CLUSTER))

# Two files at a time: every test computes on one core. ARGS="-n 0 ..." runs them in this process.
test: .venv/ready
	python -m pytest -n 2 --dist loadfile $(ARGS)

check: .venv/ready
	ruff format --check . && ruff check . && nbstripout --verify notebooks/*.ipynb
	mypy && python -m lib check

lab: .venv/ready
	jupyter lab

# The executed reports and docs/ as pages in build/site/html; nothing is run.
site: .venv/site
	PYTHONPATH=. python docs/site/pages.py

.venv/site: .venv/ready docs/site/requirements.txt
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r docs/site/requirements.txt
	touch $@

# Time and memory beside the definitions, on this machine; PART=modules measures one part again.
benchmark: .venv/ready
	python -m benchmarks $(PART)

# The pip part of environment.yml, in a virtual environment; made again when the pins change.
.venv/ready: environment.yml constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: needs Python 3.11 or newer; PYTHON=... names one")'
	$(PYTHON) -m venv .venv
	sed '1,/- pip:/d; s/^ *- //' environment.yml > .requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement .requirements.txt
	rm .requirements.txt
	touch $@

# Freeze what is installed, after a pin was changed and installed without constraints.txt; Triton is PyTorch's choice.
lock:
	.venv/bin/python -m pip freeze --exclude-editable | grep -v '^triton==' | sed 's/+cpu$$//' > constraints.txt
