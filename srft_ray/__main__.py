"""`python -m srft_ray`."""

import sys

from srft_ray.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
