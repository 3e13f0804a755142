"""What `srft-ray algorithms` says, and that docs/algorithms.md is what the classes say."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from algorithms import REGISTRY
from algorithms.uses import USES
from srft_ray.commands import list_algorithms as catalog
from srft_ray.commands.cli import main
from srft_ray.commands.compare import Outcome, table
from srft_ray.config.algorithm import make_algorithm, settings_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_made_from_the_classes():
    page = ROOT / "docs" / "algorithms.md"
    assert page.read_text().strip() == catalog.markdown().strip(), (
        "run: srft-ray algorithms --markdown > docs/algorithms.md"
    )


def test_the_list_names_every_algorithm_with_paper_and_defaults(capsys):
    assert main(["algorithms"]) == 0
    entries = capsys.readouterr().out.strip().split("\n\n")
    assert [entry.split()[0] for entry in entries] == list(REGISTRY)
    for entry, cls in zip(entries, REGISTRY.values(), strict=True):
        assert "arXiv" in entry and len(entry.splitlines()) == 3
        assert all(f"{field.name}=" in entry for field in dataclasses.fields(cls))


def test_one_algorithm_in_full(capsys):
    assert main(["algorithms", "srft"]) == 0
    out = capsys.readouterr().out
    assert (
        "(Eq. 13)" in out
        and "rl_negative  wrong_rollouts(0.5)" in out
        and "entropy_weight(0.5, -1.0, sequence)" in out
    )


def test_every_algorithm_says_when_to_use_it():
    assert list(USES) == list(REGISTRY)
    assert f"use: {USES['eaft']}" in catalog.describe("eaft")


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("srft", "yes | yes | – | – | – | – | – | –"),
        ("sft", "– | yes | – | – | – | – | – | yes"),
        ("dapo", "yes | – | – | – | yes | – | – | yes"),
        ("uft", "yes | yes | yes | yes | yes | – | – | –"),
        ("dpo", "yes | yes | – | yes | – | log-probs | – | –"),
        ("c3po", "yes | – | – | – | yes | yes | – | –"),
        ("sft_then_rl", "yes | yes | – | – | yes | – | – | yes"),
        ("srpo", "yes | – | – | – | yes | – | yes | –"),
    ],
)
def test_the_table_of_properties(name, cells):
    assert f"| `{name}` | {cells} | " in catalog.markdown()


def test_an_unknown_name(capsys):
    assert main(["algorithms", "luffi"]) == 2
    assert "did you mean 'luffy'?" in capsys.readouterr().err


def test_the_table_has_means_and_deviations():
    outcomes = [Outcome("(before)", seed, {"acc, %": 10.0}) for seed in (0, 0, 1, 1)]
    outcomes += [
        Outcome(name, seed, {"acc, %": value, "tokens": 2000.0 * seed})
        for name, seed, value in (("sft", 0, 40.0), ("grpo", 0, 0.25), ("sft", 1, 44.0), ("grpo", 1, 0.75))
    ]
    assert table(outcomes).splitlines() == [
        "| algorithm (2 seeds) | acc, % | tokens |",
        "|---|---|---|",
        "| (before) | 10.0 ± 0.0 | – |",
        "| sft | 42.0 ± 2.8 | 1,000 ± 1,414 |",
        "| grpo | 0.500 ± 0.354 | 1,000 ± 1,414 |",
    ]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("algorithm.first_schedule.lrr=1", "did you mean 'lr'?"),
        ("algorithm.first_schedule=3", "must be keys of a schedule"),
        ("algorithm.first=sft", "algorithm.first.name=sft"),
        ("algorithm.first_schedule.lr=x", "is not of type float | None"),
        ("algorithm.second.norm=mean", "choose one of token_mean"),
    ],
)
def test_bad_stages(tmp_path, tiny_model, override, wanted, capsys):
    import yaml

    from tests.conftest import base_config

    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                **base_config(tmp_path, tiny_model),
                "algorithm": {"name": "two_stage", "second": {"name": "grpo"}},
            }
        )
    )
    assert main(["train", str(config), override]) == 2
    assert wanted in capsys.readouterr().err


def test_the_resolved_config_has_every_setting_and_makes_the_same_algorithm():
    for cls in REGISTRY.values():
        settings = settings_of(cls(), {})
        assert settings["name"] == cls.name and set(settings) == {
            "name",
            *(field.name for field in dataclasses.fields(cls)),
        }
        assert make_algorithm(settings) == cls()
    path = str(ROOT / "examples" / "custom_algorithm.py") + ":Confident"
    section = {"name": "two_stage", "second": {"path": path, "ceiling": 0.7}, "first_schedule": {"lr": 1e-5}}
    full = settings_of(make_algorithm(section), section)
    assert (
        full["second"]["path"] == path
        and full["second"]["clip_low"] == 0.2
        and full["first_schedule"]["lr"] == 1e-5
    )
    assert settings_of(make_algorithm(full), full) == full


def readme_block(language, needle):
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/getting-started.md"))
    return next(
        block.split("\n", 1)[1]
        for block in text.split("```")
        if block.startswith(language) and needle in block
    )


def test_the_readmes_two_stages_and_method_of_ones_own():
    two = make_algorithm(
        OmegaConf.to_object(OmegaConf.create(readme_block("yaml", "two_stage")))["algorithm"]
    )
    assert two.stage(0, 1000).schedule.lr == 5e-5 and two.stage(200, 1000).algorithm.clip_high == 0.28
    scope = {"__name__": "mine"}
    exec(readme_block("python", "class Mine"), scope)
    assert [term.name for term in scope["Mine"](strength=0.3).terms()] == ["imitate", "policy"]


def test_the_custom_example_is_short_and_touches_nothing_else():
    source = (ROOT / "examples" / "custom_algorithm.py").read_text()
    assert len(source.splitlines()) <= 40
    algorithm = make_algorithm(
        {"path": str(ROOT / "examples" / "custom_algorithm.py") + ":Confident", "ceiling": 0.7}
    )
    assert algorithm.ceiling == 0.7 and [term.name for term in algorithm.terms()] == ["policy", "sft_demo"]
