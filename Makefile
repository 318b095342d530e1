# Every target runs the set-up that it needs, so any target works on a fresh checkout.
#
#   FAMILY=mm|onedl   OpenMMLab packages: upstream (default) or the maintained onedl-* forks
#   PYTHON=...        interpreter to build the environment with (3.10 to 3.13)
#   DETECTRON2=...    a checkout of Detectron2, for test-detectron2
#   TORCH=2.1.2       another PyTorch, for make test-torch

FAMILY ?= mm
VENV := $(if $(filter mm,$(FAMILY)),.venv,.venv-$(FAMILY))
PY := $(VENV)/bin/python
# setup.sh writes the environment variables that commands in the environment need to this file.
RUN = env $$(cat $(VENV)/.setup/env) $(PY)

CONFIG ?= configs/quickstart/faster-rcnn_tiny_shapescenes.py
WORK_DIR ?= work_dirs/quickstart
ARGS ?=

DETECTRON2 ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup train test test-optimizers test-loops test-detectron2 test-torch ecosystem docs \
	lint format clean

help:
	@echo 'make train   train the quickstart detector, evaluate it and draw its report'
	@echo '             (CONFIG=..., WORK_DIR=..., ARGS="--resume" or any other flag of tools/train.py)'
	@echo 'make test    make lint, then the whole test suite (ARGS="-k resume" or any flag of pytest)'
	@echo 'make test-optimizers   skipping and clipping over some 300 third-party optimizers'
	@echo 'make docs    build the documentation into docs/_build/html'
	@echo 'make test-loops        the pages on Lightning and Accelerate, with the real packages'
	@echo 'make test-detectron2   builds Detectron2 from DETECTRON2=/path/to/its/source and tests with it'
	@echo 'make test-torch TORCH=2.1.2   the tests that apply to another PyTorch, in .venv-torch-2.1.2'
	@echo 'make ecosystem   trains models of other OpenMMLab packages, and applies every recipe to every'
	@echo '             stock config of ten of them'
	@echo 'make lint    ruff check, ruff format --check and mypy'
	@echo 'make format  apply the fixes and the format of ruff'
	@echo 'make setup   only build $(VENV)'
	@echo 'make clean   remove the environments and the tool caches; data/ and work_dirs/ stay'
	@echo
	@echo 'Every target runs the set-up that it needs. FAMILY=onedl uses the maintained forks in'
	@echo '.venv-onedl; PYTHON=/path/to/python3.11 selects the interpreter.'

setup:
	@FAMILY='$(FAMILY)' VENV='$(VENV)' PYTHON='$(PYTHON)' sh scripts/setup.sh

train: setup
	$(RUN) tools/train.py $(CONFIG) --work-dir $(WORK_DIR) $(ARGS)
	$(RUN) tools/analysis/report_run.py $(WORK_DIR)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: lint
	$(RUN) -m pytest -n 2 $(ARGS)

# Beside the environment and not in it: what the other targets import does not change.
OPTIMIZERS := $(VENV)/optimizers

$(OPTIMIZERS)/.done: requirements/optimizers.txt | setup
	rm -rf $(OPTIMIZERS)
	$(PY) -m pip --disable-pip-version-check --no-input install --no-deps --no-compile \
		--target $(OPTIMIZERS) -r requirements/optimizers.txt
	touch $@

test-optimizers: setup $(OPTIMIZERS)/.done
	PYTHONPATH=$(CURDIR)/$(OPTIMIZERS) $(RUN) -m pytest -n 0 -q tests/optimizers $(ARGS)
	PYTHONPATH=$(CURDIR)/$(OPTIMIZERS) $(RUN) -m tests.optimizers.table

DOCS := $(VENV)/docs

$(DOCS)/.done: requirements/docs.txt | setup
	rm -rf $(DOCS)
	$(PY) -m pip --disable-pip-version-check --no-input install --no-deps --no-compile --quiet \
		--target $(DOCS) -r requirements/docs.txt
	touch $@

# From scratch, because a page that did not change repeats no warning.
docs: setup $(DOCS)/.done
	rm -rf docs/_build
	PYTHONPATH=$(CURDIR)/$(DOCS) $(RUN) -m sphinx -b html -q -W --keep-going docs docs/_build/html
	$(PY) docs/_ext/check_links.py docs/_build/html
	@echo 'The site is docs/_build/html/index.html'

LOOPS := $(VENV)/loops

$(LOOPS)/.done: requirements/loops.txt | setup
	rm -rf $(LOOPS)
	$(PY) -m pip --disable-pip-version-check --no-input install --no-deps --no-compile \
		--target $(LOOPS) -r requirements/loops.txt
	touch $@

test-loops: setup $(LOOPS)/.done
	PYTHONPATH=$(CURDIR)/$(LOOPS) $(RUN) -m pytest -n 0 -q tests/examples/test_lightning.py \
		tests/examples/test_accelerate.py $(ARGS)

# An environment of its own, because Detectron2 needs torchvision. The source is copied: a build
# writes into it.
D2 := .venv-detectron2

$(D2)/.done: requirements/detectron2.txt
	@test -f '$(DETECTRON2)/detectron2/engine/train_loop.py' || \
		{ echo 'DETECTRON2 must be the path of a checkout of Detectron2'; exit 1; }
	rm -rf $(D2)
	$(or $(PYTHON),python3) -m venv $(D2)
	$(D2)/bin/pip --disable-pip-version-check --no-input install -r requirements/detectron2.txt
	cp -R '$(DETECTRON2)' $(D2)/source
	$(D2)/bin/pip --disable-pip-version-check --no-input install --no-build-isolation $(D2)/source
	touch $@

test-detectron2: $(D2)/.done
	PYTHONPATH=$(CURDIR) GCLIP_DETECTRON2_SOURCE=$(CURDIR)/$(D2)/source OMP_NUM_THREADS=1 \
		$(D2)/bin/python -m pytest -q tests/detectron2 $(ARGS)

test-torch:
	@TORCH='$(TORCH)' PYTHON='$(or $(PYTHON),python3)' sh scripts/test_torch.sh $(ARGS)

# Like the optimizers: installed without dependencies, beside the environment and not in it.
ECOSYSTEM := $(VENV)/ecosystem

$(ECOSYSTEM)/.done: requirements/ecosystem.txt | setup
	rm -rf $(ECOSYSTEM)
	$(PY) -m pip --disable-pip-version-check --no-input install --no-deps --no-compile \
		--target $(ECOSYSTEM) -r requirements/ecosystem.txt
	touch $@

# NumPy 1, with which MMPose and MMagic import, and what these two and MMPretrain need; before the
# environment on the path. Its torchvision is that of the pinned PyTorch, as PyPI has it.
ECOSYSTEM_OLD := $(VENV)/ecosystem-numpy1

$(ECOSYSTEM_OLD)/.done: requirements/ecosystem-numpy1.txt | setup
	rm -rf $(ECOSYSTEM_OLD)
	mkdir -p $(ECOSYSTEM_OLD)
	$(PY) -m pip --disable-pip-version-check --no-input install --no-deps --no-compile \
		--target $(ECOSYSTEM_OLD) -r requirements/ecosystem-numpy1.txt
	touch $@

# Status 5 of pytest: all of its files were skipped, which the page then says.
ecosystem: setup $(ECOSYSTEM)/.done $(ECOSYSTEM_OLD)/.done
	PYTHONPATH=$(CURDIR):$(CURDIR)/$(ECOSYSTEM) $(RUN) -m pytest -n 0 -q -rs \
		tests/ecosystem/test_mmseg.py \
		--junitxml=$(ECOSYSTEM)/trained.xml $(ARGS)
	PYTHONPATH=$(CURDIR):$(CURDIR)/$(ECOSYSTEM_OLD):$(CURDIR)/$(ECOSYSTEM) $(RUN) -m pytest -n 0 -q -rs \
		tests/ecosystem/test_mmpretrain.py tests/ecosystem/test_mmpose.py tests/ecosystem/test_mmagic.py \
		--junitxml=$(ECOSYSTEM_OLD)/trained.xml $(ARGS) || [ $$? -eq 5 ]
	$(RUN) tools/dev/ecosystem.py $(ECOSYSTEM) --out docs/ecosystem.md \
		--trained $(ECOSYSTEM)/trained.xml $(ECOSYSTEM_OLD)/trained.xml

clean:
	rm -rf docs/_build .venv .venv-onedl .venv-detectron2 .venv-torch-*
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
