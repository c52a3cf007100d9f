"""The contract of a data source, over every member of SOURCES."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibration_support import CONFIGS

from askance.calibration.config import load_config
from askance.calibration.sources import SOURCES, load_source
from askance.errors import DataError


@pytest.fixture(params=list(SOURCES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_source_says_how_it_is_spelt(kind: str) -> None:
    assert SOURCES[kind].kind == kind
    assert SOURCES[kind].spelling.startswith(f"{kind}:")


@pytest.mark.parametrize("what", ["no-such-thing", "no/such/thing.npz", "."])
def test_what_is_not_there_is_refused_in_one_line_that_names_it(kind: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        load_source(f"{kind}:{what}")
    assert len(str(caught.value).splitlines()) == 1
    assert what in str(caught.value)


def test_an_empty_source_is_answered_with_all_spellings(kind: str) -> None:
    with pytest.raises(DataError, match=f"unknown data source '{kind}:'") as caught:
        load_source(f"{kind}:")
    assert all(source.spelling in str(caught.value) for source in SOURCES.values())


def test_a_path_is_looked_for_beside_the_config_and_nothing_else_is(tmp_path: Path, kind: str) -> None:
    text = (CONFIGS / "digits.toml").read_text().replace('"sklearn:digits"', f'"{kind}:here"')
    (tmp_path / "c.toml").write_text(text)
    (tmp_path / "here").touch()
    expected = f"{kind}:{tmp_path / 'here'}" if SOURCES[kind].is_path else f"{kind}:here"
    assert load_config(tmp_path / "c.toml").data.source == expected
