"""`python -m srft_ray` and `srft-ray`."""

import os
import sys

from srft_ray.fork_server.client import VARIABLE


def main() -> int:
    if folder := os.environ.get(VARIABLE):
        from srft_ray.commands.forked import in_fork

        code = in_fork(sys.argv[1:], folder)
        if code is not None:
            return code
    from srft_ray.commands.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
