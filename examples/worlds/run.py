"""Compare methods in worlds that tell them apart: `make worlds`. A command that was killed continues.

python examples/worlds/run.py [--seeds 0,1,2,3,4] [--worlds strings,control] [--parallel 2] [--publish]
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gates import Finding, measure
from gates import table as gate_table
from tables import published, short_text, world_text
from write_data import write

from srft_ray import RunFailed, UserError, load_config
from srft_ray.commands.arguments import whole_numbers
from srft_ray.commands.compare import compare
from srft_ray.commands.compare_variants import read_variants
from srft_ray.commands.variants import folder_of

ROOT = Path(__file__).resolve().parents[2]
WORLDS = ROOT / "examples" / "worlds"
RUNS = Path("runs") / "worlds"
PAGE = ROOT / "docs" / "worlds.md"
README = ROOT / "README.md"


@dataclass(frozen=True)
class World:
    """A comparison: a config, the methods, and what the config changes for it."""

    config: Path
    variants: Path
    overrides: tuple[str, ...] = ()


STRINGS = World(WORLDS / "strings.yaml", WORLDS / "strings-variants.yaml")
# The world of the quickstart, where imitation of clean demonstrations reaches what is there to learn.
CONTROL = World(
    ROOT / "examples" / "quickstart.yaml",
    WORLDS / "control-variants.yaml",
    ("run.name=control", f"run.dir={RUNS}", "trainer.keep_checkpoints=1"),
)
ALL = {"strings": STRINGS, "control": CONTROL}


def check_base() -> list[Finding]:
    """Measures the base model. Raises UserError where a gate does not let it pass."""
    findings = measure(WORLDS / "base")
    failed = [finding.band for finding in findings if not finding.passed]
    if failed:
        raise UserError(
            f"The world strings is rejected, because its base model fails at {', '.join(failed)}:\n"
            f"{gate_table(findings)}\nMake another with examples/worlds/make_base.py."
        )
    return findings


def run(world: World, seeds: Sequence[int], parallel: int) -> Path:
    """Trains what is not trained yet; returns the folder of the comparison."""
    config = load_config(world.config, list(world.overrides))
    compare(config, [], seeds, read_variants(world.variants), parallel=parallel)
    return folder_of(config, "compare")


def main() -> int:
    options = arguments()
    # The paths of the configs are relative to the repository.
    os.chdir(ROOT)
    try:
        seeds = whole_numbers("--seeds", options.seeds, least=0)
        parts = [run_world(name, seeds, options.parallel) for name in options.worlds.split(",")]
    except (UserError, RunFailed) as error:
        print(f"worlds: {error}", file=sys.stderr)
        return 1
    text = "\n\n".join(parts)
    (RUNS / "worlds.md").write_text(text + "\n")
    print(f"\n{text}\n\nwritten to {RUNS / 'worlds.md'}")
    if options.publish:
        publish(text)
    return 0


def publish(text: str) -> None:
    """Writes all tables into docs/worlds.md, and the scores of "strings" into the README."""
    PAGE.write_text(published(PAGE.read_text(), text))
    compared = comparison_file("strings")
    if compared.exists():
        outcomes = json.loads(compared.read_text())
        README.write_text(published(README.read_text(), short_text(outcomes)))


def comparison_file(name: str) -> Path:
    return RUNS / f"{name}-compare" / "compare.json"


def run_world(name: str, seeds: Sequence[int], parallel: int) -> str:
    """Runs one world; returns its part of the page."""
    gates = ""
    if name == "strings":
        gates = gate_table(check_base())
        print(gates, flush=True)
        write(RUNS / "strings-data")
    folder = run(ALL[name], seeds, parallel)
    outcomes = json.loads(comparison_file(name).read_text())
    differences = json.loads((folder / "differences.json").read_text())
    return world_text(name, outcomes, differences, gates)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="values of run.seed (default %(default)s)")
    parser.add_argument("--worlds", default=",".join(ALL), help="worlds to run (default %(default)s)")
    parser.add_argument("--parallel", type=int, default=2, help="runs at the same time (default %(default)s)")
    parser.add_argument("--publish", action="store_true", help="write the tables into README and docs/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
