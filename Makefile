# All that one does in a clone. `make` lists the targets; each sets up what it needs by itself, in .venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
# a worker of pytest a core, each with files of its own
PYTEST := $(PY) -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
DOCS := $(VENV)/.docs
PIP_LOG := $(VENV)/pip.log
PIP := $(PY) -m pip install --quiet --no-input --disable-pip-version-check --no-build-isolation --constraint constraints.txt
# what each `pip install` ends with: its log, if it failed, and what usually helps
PIP_OR_SAY = >>$(PIP_LOG) 2>&1 || { tail -n 20 $(PIP_LOG) >&2; \
	echo "set-up: pip failed; its last lines are above, all of them in $(PIP_LOG). It needs the network (or a mirror:" >&2; \
	echo "  set PIP_INDEX_URL) and 2 GB of free disk. Then run the same command again: it carries on." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test slow check parity commands aot docs architecture format clean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']   (needs Python 3.11, 3.12 or 3.13; all else is installed in $(VENV))"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## watch SmolLM2-135M teach itself; ends with a report (ARGS: options of the experiment)
	@$(PY) -m experiments.squad demo $(ARGS)

test: $(READY)  ## run the tests but for the slow ones (ARGS: options of pytest)
	@$(PYTEST) -m 'not slow' $(ARGS)

slow: $(READY)  ## run the slow tests: whole runs that are killed and carried on, real models
	@$(PYTEST) -m slow $(ARGS)

check: $(READY)  ## format check, lint, types, tests: what must pass before a commit
	@echo "== format"; $(PY) -m ruff format --check . || { echo "to mend it: make format" >&2; exit 1; }
	@echo "== lint"; $(PY) -m ruff check .
	@echo "== types"; $(PY) -m mypy
	@echo "== tests"; $(PYTEST) -m 'not slow' $(ARGS)

parity: $(PEERS)  ## compare with torch and peft, live (installs them too)
	@$(PY) -m pytest -m peers $(ARGS)

commands: $(READY)  ## run every command that README and docs show, made small
	@$(PY) -m tests.shown $(ARGS)

aot: $(READY)  ## compile tiny models for a TPU or a GPU that is not here (once its compiler is installed)
	@$(PY) -m experiments.benchmark compile --model tiny --adapters 8 $(ARGS)

docs: $(DOCS)  ## build the documentation as a site: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet && echo "build/site/index.html"

architecture: $(READY)  ## draw docs/architecture.svg: which room of the code imports which
	@$(PY) -m docs.architecture

format: $(READY)  ## format, and mend what the linter can mend
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

clean:  ## remove .venv and the caches of the tools; runs/ stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	@find seal_jax experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment of another Python version, or one that was moved and no longer runs, is made anew.
$(READY): setup.py pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "set-up: there is no '$(PYTHON)' here. Install Python 3.11, 3.12 or 3.13, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit( \
		"set-up: seal_jax needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d.%d. Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python" % v[:3])'
	@echo "set-up 1/2: $$("$(PYTHON)" --version) in $(VENV)"
	@test "$$($(PY) -c 'import pip, sys; print(sys.version)' 2>&1)" = "$$("$(PYTHON)" -c 'import sys; print(sys.version)')" \
		|| "$(PYTHON)" -m venv --clear $(VENV) || { \
		echo "set-up: $(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "set-up 2/2: installing JAX and what else is needed, without torch (1.2 GB on disk, a minute or two)"
	@: >$(PIP_LOG); $(PIP) setuptools $(PIP_OR_SAY)
	@$(PIP) --editable '.[dev]' $(PIP_OR_SAY)
	@touch $@

$(DOCS): $(READY)
	@echo "set-up: installing MkDocs"
	@$(PIP) --editable '.[dev,docs]' $(PIP_OR_SAY)
	@touch $@

$(PEERS): $(READY)
	@echo "set-up: installing torch and peft"
	@$(PIP) --editable '.[dev,peers]' $(PIP_OR_SAY)
	@touch $@
