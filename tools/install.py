"""Installs the pinned stack into the running virtual environment: `python tools/install.py cpu|gpu`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]


def pip(*arguments: str, check: bool = True) -> bool:
    return subprocess.run([*PIP, *arguments], cwd=ROOT, check=check).returncode == 0


def install_torch(requirement: str) -> None:
    """Plain pip first; where its index lacks the CPU build, uv knows the index that has it."""
    if pip(requirement, check=False):
        return
    print(f"pip's index has no {requirement}: trying PyTorch's own CPU index", flush=True)
    pip("uv")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--python",
            sys.executable,
            "--no-deps",
            "--torch-backend",
            "cpu",
            requirement.split("+")[0],
        ],
        cwd=ROOT,
        check=True,
    )


def main(stack: str) -> None:
    """The lock is complete, so nothing is resolved here (--no-deps). DeepSpeed is built from source, without
    its CUDA kernels, beside the torch that it is built for."""
    pins = [
        line
        for line in (ROOT / "requirements" / f"{stack}.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    deepspeed = next(pin for pin in pins if pin.startswith("deepspeed=="))
    install_torch(torch)
    rest = ROOT / ".venv" / "rest.txt"
    rest.write_text("\n".join(pin for pin in pins if pin not in (torch, deepspeed)))
    pip("-r", str(rest))
    os.environ["DS_BUILD_OPS"] = "0"
    pip("--no-build-isolation", deepspeed)
    pip("--no-build-isolation", "-e", ".")


if __name__ == "__main__":
    main(sys.argv[1])
