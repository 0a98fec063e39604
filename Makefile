PY := .venv/bin/python
PIP_INSTALL := .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

GPU_INSTALL := $(subst .venv/,.venv-gpu/,$(PIP_INSTALL))

.PHONY: help demo test test-gpu test-nightly lint bench bench-gpu clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The stamp makes every target install what it needs exactly once, and again when the requirements change.
.venv/installed: pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

# onnxruntime and onnxruntime-gpu are one module, so a GPU has an environment of its own. TensorRT comes from NVIDIA's
# index and the peers may lag behind torch: what does not install is left out, and the benchmark says so.
.venv-gpu/installed: pyproject.toml constraints.txt
	test -x .venv-gpu/bin/python || python3 -m venv .venv-gpu
	$(GPU_INSTALL) -e '.[dev]'
	.venv-gpu/bin/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	$(GPU_INSTALL) -e '.[gpu]'
	-$(GPU_INSTALL) -e '.[tensorrt]'
	-$(GPU_INSTALL) -e '.[rtx-plugin]'
	-$(GPU_INSTALL) late-interaction-kernels
	-$(GPU_INSTALL) flash-maxsim
	touch $@

# The root is the package, so the type checker and the import linter see it through a link of that name.
.link/chan_rt:
	mkdir -p .link && ln -sfn .. $@

demo: .venv/installed  ## pictures -> features -> bundle -> engines -> parity -> search, in under three minutes
	# waiting torch threads must not spin where the cores are shared: at load 6 the scenes took 101 s so, 243 s without
	OMP_WAIT_POLICY=passive $(PY) -m chan_rt.demo out/demo

test: .venv/installed  ## every test that needs neither GPU nor network
	$(PY) -m pytest -n 2 -m 'not gpu and not nightly'

test-gpu: .venv-gpu/installed  ## the tests that need an NVIDIA GPU
	.venv-gpu/bin/python -m pytest -m gpu

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

clean:  ## remove the environment and everything generated
	rm -rf .venv .venv-gpu .link build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
