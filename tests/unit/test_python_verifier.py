"""A verifier given from Python: what the config records of it, and what is refused."""

import functools

import pytest

from srft_ray import UserError, fit
from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.resolve import resolve
from srft_ray.run.directory import changes
from srft_ray.run.installation import check_installation
from tests.conftest import base_config


def ends_with(response, reference):
    return response.endswith(reference)


class Judge:
    def __call__(self, response, reference, metadata):
        return 1.0


def config_of(tmp_path, **sections):
    return make_config(base_config(tmp_path, tmp_path, **sections))


@pytest.mark.parametrize(
    ("verifier", "name"),
    [
        (ends_with, "ends_with"),
        (lambda response, reference: 1.0, "<lambda>"),
        (Judge(), "Judge"),
        (functools.partial(ends_with), None),
    ],
    ids=["function", "lambda", "instance", "partial"],
)
def test_its_name_takes_the_place_of_name_and_path(tmp_path, verifier, name):
    config = config_of(tmp_path, verifier={"path": "judge.py:judge"})
    section = resolve(config, verifier=verifier).config.verifier
    expected = f"python:{__name__}.{name}" if name else "python:functools.partial"
    assert (section.name, section.path) == (expected, None)
    assert config.verifier.path == "judge.py:judge", "the caller's config is not changed"


def test_a_run_is_not_continued_with_another_verifier(tmp_path):
    config = config_of(tmp_path)
    recorded = [
        {"verifier": vars(resolve(config, verifier=verifier).config.verifier)}
        for verifier in (ends_with, Judge(), None)
    ]
    for other in recorded[1:]:
        assert changes(recorded[0], other) == ["verifier.name"]
    assert changes(recorded[0], recorded[0]) == []


@pytest.mark.parametrize("verifier", ["judge.py:judge", 3, object()], ids=["path", "number", "object"])
def test_what_is_not_callable_is_refused(tmp_path, verifier):
    with pytest.raises(
        UserError, match=r"verifier is .*: pass a callable .* verifier\.path=file\.py:function"
    ):
        fit(config_of(tmp_path), verifier=verifier)


def test_the_recorded_name_alone_is_no_verifier(tmp_path):
    config = make_config({**base_config(tmp_path, tmp_path), "verifier": {"name": "python:here.judge"}})
    assert "python:here.judge" in to_yaml(config)
    with pytest.raises(UserError, match=r"given from Python: call fit\(config, verifier=…\)"):
        check_installation(config)
