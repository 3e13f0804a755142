"""The quickstart: SRFT on a tiny base model, evaluated before and after; ends with a table and a picture."""

import itertools
import sys
from pathlib import Path

from srft_ray import RunFailed, UserError, fit, load_config
from srft_ray.observe.report import table

ROOT = Path(__file__).resolve().parent.parent


def free_name(runs: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, … if there are such runs already."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(n for n in names if not (runs / n).exists())


def main() -> int:
    name = free_name(ROOT / "runs", "quickstart")
    config = load_config(
        ROOT / "examples" / "quickstart.yaml",
        [
            f"run.name={name}",
            f"run.dir={ROOT / 'runs'}",
            f"model.path={ROOT / 'examples' / 'tiny' / 'base'}",
            *sys.argv[1:],
        ],
    )
    try:
        result = fit(config)
    except (UserError, RunFailed) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    if result.stopped:
        print(f"stopped by {result.stopped} after {result.steps} steps, before the comparison")
        return 0
    print(f"\n{table(result.summary)}\n")
    print(f"picture  {result.run_dir / 'plots' / 'overview.png'}")
    print(f"model    {result.model}")
    print(f"ledger   {result.run_dir / 'groups'} (every sequence that was trained on)")
    print(
        f"{result.summary['steps']} steps in {result.summary['seconds']:.0f} s with engines' and learners' "
        "start"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
