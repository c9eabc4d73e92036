# The two commands that matter, `make reproduce` and `make test`, do all their own set-up in
# .venv. Conda users and others with an environment of their own add PYTHON=python: that Python
# is then used as it is, and nothing is installed.

VENV := .venv
BASE_PYTHON ?= python3

ifdef PYTHON
PY := $(PYTHON)
READY := check-python
else
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
# An editable install points at the folder it was made in: in a copied or moved checkout it
# would quietly run the other folder's code, so it is made again there.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
endif

OLD = basisconv needs Python 3.11 or later and $(1) is %d.%d; name another one, as in: make $(2)
define require_python
	@command -v $(1) >/dev/null || { echo "No $(1) found; name a Python of 3.11 or later, as in: make $(2)" >&2; exit 1; }
	@$(1) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(call OLD,$(1),$(2))" % sys.version_info[:2])'
endef

# The driver itself chooses the profile when none is named: paper with CUDA, else quick.
OPTIONS = $(if $(PROFILE),--profile '$(PROFILE)') $(if $(EXECUTOR),--executor '$(EXECUTOR)') \
	$(foreach setting,$(SET),--set '$(setting)')

.DEFAULT_GOAL := help
.PHONY: help env test torture reproduce paper lab notebooks bench clean check-python

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "PYTHON=python       use this Python and its packages as they are; install nothing"
	@echo "BASE_PYTHON=python3 the Python that makes $(VENV)"
	@echo "PROFILE=NAME        smoke, quick, desk or paper; default: paper with CUDA, else quick"
	@echo "EXECUTOR=ray        train on a Ray cluster, or on this machine through Ray"
	@echo "SET='key=value ...' change settings of the profile"

env: $(READY) ## the set-up alone: .venv with everything in it

test: $(READY) ## lint, types, tests and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command as lint; lint()"
	$(PY) -m pytest tests
	$(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 notebooks

torture: $(READY) ## kill and damage what must lose nothing; writes tests/torture-report.md
	PYTHONPATH=tests $(PY) -m torture

reproduce: $(READY) ## run every notebook and build the paper; takes PROFILE, EXECUTOR and SET
	$(PY) -m basisconv reproduce $(OPTIONS)

paper: $(READY) ## rebuild tables, figures and the PDF from the published records
	$(PY) -m basisconv paper

lab: $(READY) ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

# Twice, because the first time trains and leaves its progress bars in the outputs.
NOTEBOOKS ?= notebooks/*.ipynb
notebooks: $(READY) ## execute the committed notebooks, or NOTEBOOKS, in place at the smoke profile
	for i in 1 2; do $(PY) -m nbconvert --to notebook --execute --inplace --log-level ERROR \
		--ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.extra_arguments="['--IPKernelApp.log_level=ERROR']" $(NOTEBOOKS) || exit 1; done

bench: $(READY) ## time layers and networks on this machine
	$(PY) -m basisconv bench

# Records of runs are hours of work and stay; so does .venv.
clean: ## remove what was generated, but not the records in build/*/runs
	if [ -d build ]; then find build -mindepth 2 -maxdepth 2 ! -name runs -exec rm -rf {} +; fi
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis basisconv.egg-info
	find basisconv tests notebooks -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

check-python:
	$(call require_python,$(PY),$(or $(MAKECMDGOALS),test) PYTHON=python3.12)

# The stamp is written last, so that an interrupted set-up is done again.
$(VENV)/.installed: pyproject.toml
	$(call require_python,$(BASE_PYTHON),env BASE_PYTHON=python3.12)
	@rm -f $@
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(BASE_PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-input -e '.[study,ray,test]'
	@printf '%s\n' '$(CURDIR)' > $@
