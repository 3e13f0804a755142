"""The evaluation sets of a config, each with all of its settings."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from srft_ray.config.checks import check_values
from srft_ray.config.schema import Config, DataSection, VerifierSection
from srft_ray.config.settings import setting
from srft_ray.errors import UserError, first_line, nearest, require

SET_NAME = re.compile(r"\w[\w.-]*")
TRAIN = "train"  # what the stream calls the training data, beside the names of the sets


@dataclass
class EvaluationSetSection(DataSection):
    """One set of `evaluation.data`: keys of the data section, and how the set is sampled and judged."""

    samples: int | None = setting(None, "As evaluation.samples, for this set.", least=1)
    max_prompts: int | None = setting(None, "As evaluation.max_prompts, for this set.", least=1)
    temperature: float | None = setting(None, "As evaluation.temperature, for this set.", above=0)
    top_p: float | None = setting(None, "As evaluation.top_p, for this set.", above=0, most=1)
    max_new_tokens: int | None = setting(
        None, "Longest response of this set, in tokens; by default rollout.max_new_tokens.", least=1
    )
    verifier: str | None = setting(
        None, "Name of a verifier, or `file.py:function`, for this set; by default that of the run."
    )

    @property
    def data(self) -> DataSection:
        """The keys that decide what the prompts are."""
        names = [item.name for item in dataclasses.fields(DataSection)]
        return DataSection(**{name: getattr(self, name) for name in names})

    def judge(self, default: VerifierSection) -> VerifierSection:
        """The verifier of this set; limits are those of the run's."""
        if self.verifier is None:
            return default
        named = {"path": self.verifier} if ":" in self.verifier else {"name": self.verifier, "path": None}
        return dataclasses.replace(default, **named)


def evaluation_sets(config: Config) -> dict[str, EvaluationSetSection]:
    """Each set with the keys that it does not change taken from the data, evaluation and rollout sections.

    Raises:
        UserError: a key or a value of a set is wrong.
    """
    return {name: _evaluation_set(config, name) for name in config.evaluation.data}


def _evaluation_set(config: Config, name: str) -> EvaluationSetSection:
    given: Any = config.evaluation.data[name]
    where = f"evaluation.data.{name}"
    keys = [item.name for item in dataclasses.fields(EvaluationSetSection)]
    require(name != TRAIN, f"{where}: this name stands for the training data; call the set something else.")
    require(
        bool(SET_NAME.fullmatch(str(name))),
        f"{where}: the name becomes that of a folder; write it of letters, digits and any of _ . - .",
    )
    require(
        isinstance(given, dict), f"{where} must hold keys of the data section, such as path, not {given!r}."
    )
    for key in given:
        require(key in keys, f"Unknown config key '{where}.{key}': {nearest(key, keys)}")
    try:
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(_defaults(config, given)), given))
        check_values(dataclasses.replace(config, data=section))
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{where}.{error.full_key}': {first_line(error)}.") from error
    except UserError as error:
        raise UserError(f"In {where}: {error}") from error
    for key in ("samples", "temperature", "top_p", "max_new_tokens"):
        if getattr(section, key) is None:
            setattr(section, key, getattr(_defaults(config, given), key))
    require(
        section.max_new_tokens < config.model.max_length,
        f"{where}.max_new_tokens={section.max_new_tokens} leaves no room for a prompt in "
        f"model.max_length={config.model.max_length}: lower the one or raise the other.",
    )
    if section.verifier and ":" in section.verifier:
        # Ray's workers run in other directories than the driver.
        section.verifier = str(Path(section.verifier).expanduser().absolute())
    return section


def _defaults(config: Config, given: dict[str, Any]) -> EvaluationSetSection:
    """What a set is without keys of its own; its format is told anew if its path differs."""
    evaluation = config.evaluation
    section = EvaluationSetSection(
        **vars(config.data),
        samples=evaluation.samples,
        max_prompts=evaluation.max_prompts,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    if "path" in given and config.data.format != "tasks":
        section.format = "auto"
    return section
