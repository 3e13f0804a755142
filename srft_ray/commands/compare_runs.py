"""The runs of a comparison: methods and variants with every seed; some begin with the model of another."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from algorithms import Algorithm
from srft_ray.commands.compare_variants import AFTER, Sections, check_variants, with_sections
from srft_ray.commands.side_by_side import train_all
from srft_ray.commands.variants import Variant, check, derived_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, nearest, require


@dataclass(frozen=True)
class Comparison:
    """One run of a comparison.

    Attributes:
        label: names its algorithm in the table and in the run directory.
        after: the run with whose model it begins; None for the config's model.
    """

    label: str
    run: Variant
    after: "Comparison | None" = None

    @property
    def folders(self) -> list[Path]:
        """The run directories of those that it goes on from, the first one first, and its own."""
        return [*(self.after.folders if self.after else ()), self.run.config.run_dir]

    def with_its_model(self) -> "Comparison":
        """With the model of the run that it goes on from, as soon as that is finished."""
        summary = self.after.run.config.run_dir / "summary.json" if self.after else None
        if summary is None or not summary.exists():
            return self
        model = json.loads(summary.read_text())["model"]
        config = dataclasses.replace(
            self.run.config, model=dataclasses.replace(self.run.config.model, path=model)
        )
        return dataclasses.replace(self, run=Variant.of(config, self.run.algorithm))


def check_all(comparisons: Sequence[Comparison]) -> None:
    """Raises UserError as `check`; a run that goes on from an unfinished one is checked with the config's
    model."""
    check([one.with_its_model().run for one in comparisons])


def train_in_order(comparisons: Sequence[Comparison], parallel: int) -> None:
    """Trains what is not finished, each run after the one that it goes on from.

    Raises:
        UserError, RunFailed: as `train_all`.
    """
    waiting = list(comparisons)
    while waiting:
        depth = min(len(one.folders) for one in waiting)
        ready = [one.with_its_model() for one in waiting if len(one.folders) == depth]
        check([one.run for one in ready if one.after])  # the others were checked with their model
        waiting = [one for one in waiting if len(one.folders) > depth]
        train_all([one.run for one in ready], parallel, [one.run for one in waiting])


def planned_runs(
    config: Config,
    algorithms: Sequence[str | Algorithm],
    seeds: Sequence[int],
    variants: Mapping[str, Sections] | None = None,
) -> list[Comparison]:
    """The runs of a comparison in the order of training: all algorithms of one seed, then of the next.

    Raises:
        UserError: no evaluation set, algorithm or seed, or something that is no algorithm.
    """
    require(
        bool(config.evaluation.data),
        "compare needs evaluation sets: add one, such as evaluation.data.heldout.split=heldout .",
    )
    given = variants or {}
    require(len(algorithms) + len(given) > 0, "compare needs at least one algorithm.")
    require(len(seeds) > 0, "compare needs at least one seed.")
    labelled = labels(algorithms)
    check_variants(given)
    for name, sections in given.items():
        require(name not in labelled, f"The variant {name} has the name of an algorithm of the comparison.")
        known = [*labelled, *given]
        require(
            sections.get(AFTER, name) in known,
            f"The variant {name} goes on after {sections.get(AFTER)}, which is not compared: "
            f"{nearest(sections.get(AFTER), known)}",
        )
    found: list[Comparison] = []
    for seed in dict.fromkeys(seeds):
        of_seed: dict[str, Comparison] = {}
        for label, algorithm in labelled.items():
            of_seed[label] = Comparison(label, _variant(config, label, algorithm, seed))
        for label in _in_order(given):
            run = _section_variant(config, label, given[label], seed)
            after = of_seed.get(given[label].get(AFTER, ""))
            _check_model_is_local(label, after)
            of_seed[label] = Comparison(label, run, after)
        found += [of_seed[label] for label in (*labelled, *given)]
    return found


def _check_model_is_local(label: str, after: Comparison | None) -> None:
    path = (after.run.config.trainer.checkpoint_path or "") if after else ""
    require(
        "://" not in path,
        f"The variant {label} goes on from a checkpoint in trainer.checkpoint_path={path}, and models are "
        "read from a directory: set it to a directory on shared storage.",
    )


def _in_order(variants: Mapping[str, Sections]) -> list[str]:
    """The variants, each after the one that it goes on from.

    Raises:
        UserError: some go on from each other.
    """
    ordered: list[str] = []
    while len(ordered) < len(variants):
        left = [name for name in variants if name not in ordered]
        ready = [name for name in left if variants[name].get(AFTER) not in left]
        require(
            bool(ready), f"The variants {', '.join(left)} go on after each other, so that none can be first."
        )
        ordered += ready
    return ordered


def labels(algorithms: Iterable[str | Algorithm]) -> dict[str, str | Algorithm]:
    """The algorithms by label. The run directory of an algorithm is `<label>-seed<seed>`.

    The label is the algorithm's name. A repeated name is the same run and is trained once. Every instance is
    a run of its own: if its label is taken by an earlier entry it gets `-2`, then `-3`, in the order of the
    list. So the same list gives the same directories again.

    Raises:
        UserError: an entry is neither a name nor an instance of an algorithm with a usable name.
    """
    found: dict[str, str | Algorithm] = {}
    for entry in algorithms:
        name = _name_of(entry)
        if isinstance(entry, str) and entry in found.values():
            continue
        label = name
        number = 1
        while label in found:
            number += 1
            label = f"{name}-{number}"
        found[label] = entry
    return found


def _name_of(entry: str | Algorithm) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, type):
        raise UserError(f"compare takes instances of algorithms, not classes: pass {entry.__name__}().")
    require(
        isinstance(entry, Algorithm),
        f"compare takes names and instances of algorithms.Algorithm, not {entry!r}.",
    )
    name = getattr(entry, "name", "")
    require(
        bool(name) and "/" not in name,
        f"{type(entry).__name__} has no name that can be part of a run directory: set its class attribute "
        "name to a word.",
    )
    return name


def _variant(config: Config, label: str, algorithm: str | Algorithm, seed: int) -> Variant:
    """The run of an algorithm with a seed, evaluated at least before the first and after the last step."""
    run = _seeded(config, label, seed)
    if isinstance(algorithm, Algorithm):
        return Variant.of(run, algorithm)
    if config.algorithm.get("name") != algorithm:
        run.algorithm = {"name": algorithm}
    return Variant.of(run)


def _section_variant(
    config: Config,
    label: str,
    sections: Sections,
    seed: int,
) -> Variant:
    """The run of a variant with a seed."""
    run = _seeded(with_sections(config, sections), label, seed)
    # The names and directories are those of the comparison's config.
    run.run = _seeded(config, label, seed).run
    return Variant.of(run)


def _seeded(config: Config, label: str, seed: int) -> Config:
    run = derived_config(config, "compare", f"{label}-seed{seed}")
    run.run.seed = seed
    run.trainer.evaluate_every = config.trainer.evaluate_every or config.trainer.steps
    return run
