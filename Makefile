# make demo   a real model on real items, three presets, a figure and a report
# make test   everything that CI checks
# make lab    JupyterLab in this environment
# Other targets: env, export, lint, readme, gpu-env, clean. PYTHON=python3.11 chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKS := locks/cpu.txt locks/torch-cpu.txt
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test lab env gpu-env export lint readme clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/qwen-eval study run demo

test: $(VENV)/.ready-dev
	$(BIN)/ruff check qwen_eval nbs tests .ci
	$(BIN)/python -m pytest -n $${QWEN_EVAL_TEST_WORKERS:-2} --dist loadgroup

lab: $(VENV)/.ready-lab
	$(BIN)/jupyter lab --ip 127.0.0.1 $$(test "$$(id -u)" != 0 || echo --allow-root) nbs

env: $(VENV)/.ready-dev

# editable_mode=compat puts the clone on the path by name, so that a folder that holds a clone called
# qwen_eval does not hide the package from scripts beside it.
# The build of torch for a CPU carries a local version that PyPI itself does not hold: pip's configured
# sources are tried first, then PyTorch's own index. On macOS the plain build is the CPU build.
$(VENV)/.ready: $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"Python 3.10 to 3.13 is needed (locks were checked on 3.11), this is {sys.version.split()[0]}; say make PYTHON=python3.11")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked environment into $(VENV) (3 GB, about 3 minutes) ..."
	@if [ "$$(uname)" = Darwin ]; then $(PIP) --no-deps "$$(grep '^torch' locks/torch-cpu.txt | sed 's/+cpu//')"; \
	else $(PIP) --no-deps -r locks/torch-cpu.txt 2>/dev/null || $(PIP) --no-deps --index-url $(TORCH_INDEX) -r locks/torch-cpu.txt; fi
	@$(PIP) --no-deps -r locks/cpu.txt
	@$(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/.ready-dev: locks/dev.txt $(VENV)/.ready
	@$(PIP) --no-deps -r locks/dev.txt
	@touch $@

$(VENV)/.ready-lab: locks/lab.txt $(VENV)/.ready
	@$(PIP) --no-deps -r locks/lab.txt
	@touch $@

# An environment with vLLM for NVIDIA GPUs, beside the one for the CPU.
gpu-env: locks/gpu.txt
	@test -d .venv-gpu || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet -r locks/gpu.txt
	.venv-gpu/bin/python -m pip install --quiet --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat --editable .

export: $(VENV)/.ready-dev
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean --fname nbs
	$(BIN)/python .ci/readme.py

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check qwen_eval nbs tests .ci

readme: $(VENV)/.ready-dev
	$(BIN)/python .ci/readme.py

clean:
	rm -rf $(VENV) .venv-gpu build *.egg-info .pytest_cache .ruff_cache
