# Three commands a newcomer needs: `make demo`, `make test`, `make lint`. All of them make .venv
# first, once; it is made again only when pyproject.toml or constraints.txt changes.
# `make services` holds an MLflow server and an S3 server to try things out with.
# `make audit-packages` asks advisory databases about constraints.txt; it needs a network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEV_STAMP := $(VENV)/installed-dev
DEMO_OUT ?= runs/digits

# One thread a process: two workers with two threads each are slower on two cores, not faster.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

SERVICES ?= services
AUDIT := build/audit

.PHONY: venv demo test lint services services-stop audit-packages clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "rapid-dist needs Python 3.11 or newer; say which: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rapid-dist run --recipe digits --out $(DEMO_OUT)

# In the order of folders: files of few and long tests come first, and the short ones fill the end.
test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow and not gpu' -n 2 --dist loadfile --no-loadscope-reorder -q

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $(DEV_STAMP)

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

services: $(STAMP)
	$(BIN)/python -m rapid_dist.runtime.services --folder $(SERVICES)

services-stop: $(STAMP)
	$(BIN)/python -m rapid_dist.runtime.services --folder $(SERVICES) --stop

# In an environment of its own: what audits the packages is not one of them. Lines of advisories.txt
# whose day has not come are passed over.
audit-packages:
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3')
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip \
		$$(awk -v today=$$(date +%F) '!/^#/ && $$3 == "until" && $$4 >= today {print "--ignore-vuln", $$1}' \
			advisories.txt)

clean:
	rm -rf $(VENV) runs build *.egg-info
