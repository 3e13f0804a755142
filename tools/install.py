"""Makes a virtual environment with the pinned stack: `python tools/install.py FOLDER cpu|gpu`."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_DRIVER = 580  # of CUDA 13, which the GPU stack is built for


class Environment:
    """A virtual environment, made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        if not self.python.exists():
            venv.create(folder, with_pip=True)

    def pip(self, *arguments: str, check: bool = True) -> bool:
        """The lock is complete, so nothing is resolved."""
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        return subprocess.run([*command, *arguments], cwd=ROOT, check=check).returncode == 0

    def install_torch(self, pin: str) -> None:
        """Plain pip first; where its index lacks the CPU build, uv knows the index that has it."""
        is_cpu_build = pin.endswith("+cpu")
        if self.pip(pin, check=not is_cpu_build):
            return
        print(f"pip's index has no {pin}: trying PyTorch's own CPU index", flush=True)
        self.pip("uv")
        uv = [self.python, "-m", "uv", "pip", "install", "--python", self.python, "--no-deps"]
        subprocess.run([*uv, "--torch-backend", "cpu", pin.removesuffix("+cpu")], cwd=ROOT, check=True)


def driver_problem() -> str:
    """Why the GPU stack cannot run with this machine's driver; empty if nothing speaks against it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return "nvidia-smi does not run, so that there is no NVIDIA driver: use STACK=cpu."
    major = said[0].partition(".")[0] if said else ""
    if major.isdigit() and int(major) < OLDEST_DRIVER:
        return (
            f"The NVIDIA driver {said[0]} is too old for the GPU stack, which needs {OLDEST_DRIVER} or newer "
            "(CUDA 13): update it, or use STACK=cpu."
        )
    return ""


def install(environment: Environment, stack: str) -> None:
    """DeepSpeed is built from source, without its kernels, beside the torch that it is built for."""
    lines = (ROOT / "requirements" / f"{stack}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    deepspeed = next(pin for pin in pins if pin.startswith("deepspeed=="))
    environment.install_torch(torch)
    rest = environment.folder / "rest.txt"
    rest.write_text("\n".join(pin for pin in pins if pin not in (torch, deepspeed)))
    environment.pip("-r", str(rest))
    os.environ["DS_BUILD_OPS"] = "0"
    environment.pip("--no-build-isolation", deepspeed)
    environment.pip("--no-build-isolation", "-e", ".")


def main(folder: str, stack: str) -> None:
    problem = driver_problem() if stack == "gpu" else ""
    if problem:
        sys.exit(problem)
    print(f"setting up the {stack} stack in {folder} (some minutes, once)", flush=True)
    install(Environment((ROOT / folder).resolve()), stack)


if __name__ == "__main__":
    main(*sys.argv[1:])
