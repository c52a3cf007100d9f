"""The public face: what `import askance` gives, and that it is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import askance

HEAVY = ("torch", "numpy", "grpc", "pydantic", "rich", "PIL", "matplotlib")


def python(code: str, **options: object) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_what_is_exported() -> None:
    """Every name is there, is public, and is documented; and the type checker's imports are the ones at run time."""
    assert sorted(askance.__all__, key=str.casefold) == sorted(set(askance.__all__), key=str.casefold)
    for name in askance.__all__:
        found = getattr(askance, name)
        if name != "__version__":
            assert found.__doc__, name
            assert found.__module__.startswith("askance."), name
    source = Path(str(askance.__file__)).read_text()
    for name, home in askance._HOMES.items():
        assert f"from {home} import {name} as {name}" in source, name
    assert source.count(" import ") - source.count("    import askance") >= len(askance._HOMES)
    assert set(askance.__all__) <= set(dir(askance))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'askance' has no attribute 'opne': did you mean 'open'\?"):
        _ = askance.opne
    assert not hasattr(askance, "Scren")


def test_a_star_import_gives_all() -> None:
    shown = python("from askance import *; print(sorted(n for n in dir() if not n.startswith('__')))")
    assert shown.strip() == str(sorted(name for name in askance.__all__ if not name.startswith("__")))


def loaded(code: str) -> list[str]:
    """The heavy modules that a statement loads in a fresh interpreter."""
    out = python(f"import sys\n{code}\nprint('\\n', *[m for m in {HEAVY!r} if m in sys.modules])")
    return out.splitlines()[-1].split()


def test_importing_it_loads_nothing_heavy() -> None:
    assert loaded("import askance") == []


@pytest.mark.parametrize(
    "code",
    [
        "import askance; askance.Client; askance.AsyncClient",
        "from askance.__main__ import run; run(['token'])",
        "from askance.__main__ import run; run(['--version'])",
        "from askance.__main__ import run; run(['--help'])",
        "from askance.__main__ import run; run(['serve', '--help'])",
    ],
)
def test_what_needs_no_torch_loads_none(code: str) -> None:
    assert "torch" not in loaded(code)
