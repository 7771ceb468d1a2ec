"""Names and sizes that a hub gave."""

from __future__ import annotations

import pytest

from xinf.registry.files import as_size, is_inside


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json", "a..b", "模型.json"])
def test_names_of_files_are_inside(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a\\..\\x", "a\x00b", "a\x1b[2Jb", "a\nb"])
def test_names_that_lead_elsewhere_are_not(name: str) -> None:
    assert not is_inside(name)


@pytest.mark.parametrize("size", ["5", -1, 1.5, True, None, [5]])
def test_what_is_no_size_is_not_known(size: object) -> None:
    assert as_size(size) is None
    assert as_size(5) == 5
