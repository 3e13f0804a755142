# `make quickstart` and `make test` set everything up by themselves; they need Python >= 3.11, pip and make. The CPU
# stack is in .venv and the GPU stack in .venv-gpu. Tests always run on the CPU stack.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
STACK ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
BIN_cpu := $(BIN)
BIN_gpu := .venv-gpu/bin
PYTEST := $(BIN)/python -m pytest
TWO := -n 2 --dist worksteal

.PHONY: quickstart worlds test test-full lint setup cpu gpu lock clean

quickstart: $(STACK)
	$(BIN_$(STACK))/python examples/quickstart.py

# Compares methods in worlds that tell them apart; a command that was killed continues.
worlds: cpu
	$(BIN)/python examples/worlds/run.py --publish

test: MARKS := not full and not gpu
test-full: MARKS := not gpu
test test-full: cpu
	$(PYTEST) $(TWO) tests/unit -m "$(MARKS)"
	$(PYTEST) $(TWO) tests/distributed -m "$(MARKS)"
	$(PYTEST) tests/processes tests/browser -m "$(MARKS)"
	$(PYTEST) $(TWO) tests/ray -m "$(MARKS)"

lint: cpu
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(STACK)

cpu: .venv/ready-cpu
gpu: .venv-gpu/ready-gpu

%/ready-cpu %/ready-gpu: pyproject.toml tools/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) tools/install.py $(@D) $(subst ready-,,$(@F))
	@touch $@

.venv/ready-cpu: requirements/cpu.txt
.venv-gpu/ready-gpu: requirements/gpu.txt

# Needs uv. Where the CPU build of torch is not on the default index, pass UV_FLAGS="--torch-backend cpu" or --find-links.
lock:
	uv pip compile pyproject.toml --extra cpu --extra dev --override requirements/overrides.txt $(UV_FLAGS) --no-header --no-annotate -o requirements/cpu.txt
	uv pip compile pyproject.toml --extra gpu --extra dev --constraint requirements/gpu-constraints.txt --no-header --no-annotate -o requirements/gpu.txt

clean:
	rm -rf .venv .venv-gpu runs
