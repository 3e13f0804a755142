"""Large imports: the garbage collector rests meanwhile, and works as before afterwards."""

import gc

import pytest

from srft_ray.imports import large_imports


def test_the_collector_rests_and_goes_on():
    gc.unfreeze()
    with large_imports():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    gc.unfreeze()


def test_it_goes_on_after_a_failed_import_too():
    with pytest.raises(ModuleNotFoundError), large_imports():
        import srft_ray.no_such_module  # noqa: F401
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off():
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
