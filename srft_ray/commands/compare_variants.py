"""Variants of a comparison as sections of YAML: an algorithm with its settings, and keys that differ."""

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from srft_ray.config.load import make_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, first_line, require

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What all variants share: otherwise their figures could not be compared.
SHARED = ("run", "evaluation", "verifier")

AFTER = "after"  # the key of a variant that begins with the model of another method

Sections = Mapping[str, Any]  # keys by section, and perhaps a method's name under `after`


def read_variants(path: str | Path) -> dict[str, Sections]:
    """The variants of a file: `name: {algorithm: {…}, learner: {lr: …}}`.

    Raises:
        UserError: no such file, or something else in it.
    """
    file = Path(path).expanduser()
    require(file.is_file(), f"--variants {file} does not exist; pass a YAML file with one section a variant.")
    try:
        given = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--variants {file} is not valid YAML: {first_line(error)}.") from error
    is_mapping = isinstance(given, dict) and bool(given)
    require(is_mapping, f"--variants {file} must hold variants by name, such as srft: {{algorithm: …}}.")
    check_variants(given)
    return given


def check_variants(given: Mapping[str, Any]) -> None:
    """Raises UserError for a name that cannot be a directory's, and for sections that variants share."""
    for name, sections in given.items():
        _check_variant(name, sections)


def _check_variant(name: Any, sections: Any) -> None:
    require(
        isinstance(name, str) and NAME.fullmatch(name) is not None,
        f"The variant {name!r} needs a name of letters, digits, dots, hyphens and underscores.",
    )
    require(
        isinstance(sections, Mapping)
        and all(isinstance(keys, Mapping) for section, keys in sections.items() if section != AFTER),
        f"The variant {name} must hold sections, such as algorithm: {{name: srft}}, not {sections!r}.",
    )
    require(
        isinstance(sections.get(AFTER, ""), str),
        f"The variant {name} has after: {sections.get(AFTER)!r}: give the name of one method.",
    )
    for section in SHARED:
        require(
            section not in sections,
            f"The variant {name} changes {section}, which all variants of a comparison share: set it in the "
            "config.",
        )
    require(
        AFTER not in sections or "model" not in sections,
        f"The variant {name} goes on after {sections.get(AFTER)}, whose model it begins with: leave out its "
        "model section.",
    )


def with_sections(config: Config, sections: Sections) -> Config:
    """A copy of the config with the keys of a variant. Its `algorithm` takes the place of the config's.

    Raises:
        UserError: an unknown key, or a value that does not fit.
    """
    values = copy.deepcopy(dataclasses.asdict(config))
    for section, keys in sections.items():
        if section == AFTER:
            continue
        if section == "algorithm":
            values[section] = dict(keys)
        else:
            values[section] = {**values.get(section, {}), **keys}
    return make_config(values)
