# `make quickstart` and `make test` set everything up in .venv by themselves; they need Python >= 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
STACK ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
LOCK := requirements/$(STACK).txt
READY := .venv/ready-$(STACK)
QUIET := --quiet --disable-pip-version-check

.PHONY: quickstart test test-full lint setup lock clean

quickstart: $(READY)
	$(BIN)/python examples/quickstart.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 tests/unit
	$(BIN)/python -m pytest tests/distributed tests/browser tests/ray -m "not full and not gpu"

test-full: $(READY)
	$(BIN)/python -m pytest tests -m "not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(READY)

$(READY): $(LOCK) pyproject.toml
	@echo "setting up the $(STACK) stack in .venv (some minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python tools/install.py $(STACK)
	@touch $@

# Needs uv. Where the CPU build of torch is not on the default index, pass UV_FLAGS="--torch-backend cpu" or --find-links.
lock:
	uv pip compile pyproject.toml --extra cpu --extra dev --override requirements/overrides.txt $(UV_FLAGS) --no-header --no-annotate -o requirements/cpu.txt
	uv pip compile pyproject.toml --extra gpu --extra dev --no-header --no-annotate -o requirements/gpu.txt

clean:
	rm -rf .venv runs
