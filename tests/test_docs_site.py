"""The documentation builds as a site: every page is in its navigation, every link and every name leads somewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -c constraints.txt '.[docs]'"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    protocols = (tmp_path / "site" / "protocols.html").read_text(encoding="utf-8")
    assert "askance.v1.Screening" in protocols
    assert "ScreenedClassifier" in (tmp_path / "site" / "reference" / "askance.html").read_text(encoding="utf-8")
