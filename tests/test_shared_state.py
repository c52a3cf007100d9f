"""A user's module may set whatever it likes of what a process has once: it is undone, and disturbs nothing."""

from __future__ import annotations

import contextlib
import gc
import locale
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from test_proof import DATA, PREPROCESSING, Net, calibrated
from torch import Tensor, nn

import askance
from askance.calibration.proof import prove
from askance.classifiers import build_classifier
from askance.classifiers.replaced import attributes
from askance.classifiers.shared_state import ordinary, undone
from askance.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent


def numpys_state() -> Any:
    return [part if isinstance(part, (str, int, float)) else part.tolist() for part in np.random.get_state()]


def umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


CHANGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "default device": ("torch.set_default_device('meta')", torch.get_default_device),
    "gradients": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "anomalies": ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled),
    "deterministic": ("torch.use_deterministic_algorithms(True)", torch.are_deterministic_algorithms_enabled),
    "threads": ("torch.set_num_threads(3)", torch.get_num_threads),
    "precision": ("torch.set_float32_matmul_precision('medium')", torch.get_float32_matmul_precision),
    "cudnn": ("torch.backends.cudnn.benchmark = True", lambda: torch.backends.cudnn.benchmark),
    "numpy errors": ("np.seterr(all='raise')", np.geterr),
    "torch's seed": ("torch.manual_seed(99)", lambda: torch.get_rng_state().tolist()),
    "numpy's seed": ("np.random.seed(99)", numpys_state),
    "Python's seed": ("random.seed(99)", random.getstate),
    "warnings": ("warnings.simplefilter('error')", lambda: warnings.filters[:]),
    "logging": (
        "logging.basicConfig(level=1, force=True)",
        lambda: (logging.root.level, logging.root.handlers[:]),
    ),
    "logging off": ("logging.disable(50)", lambda: logging.root.manager.disable),
    "signals": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", lambda: signal.getsignal(signal.SIGTERM)),
    "folder": ("os.chdir('/')", os.getcwd),
    "oneDNN": ("torch.backends.mkldnn.enabled = False", lambda: torch.backends.mkldnn.enabled),
    "denormals": ("torch.set_flush_denormal(True)", lambda: float(torch.tensor(1e-40) * 1)),
    "truncated images": (
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    ),
    "large images": ("Image.MAX_IMAGE_PIXELS = None", lambda: Image.MAX_IMAGE_PIXELS),
    "collector": ("gc.disable(); gc.set_threshold(1)", lambda: (gc.isenabled(), gc.get_threshold())),
    "recursion": ("sys.setrecursionlimit(5000)", sys.getrecursionlimit),
    "switches": ("sys.setswitchinterval(1)", sys.getswitchinterval),
    "output": ("sys.stdout = sys.stderr = None", lambda: (sys.stdout, sys.stderr)),
    "hooks on all modules": (
        "torch.nn.modules.module.register_module_forward_hook(print)",
        lambda: dict(torch.nn.modules.module._global_forward_hooks),
    ),
    "half precision": ("torch.set_autocast_enabled('cpu', True)", lambda: torch.is_autocast_enabled("cpu")),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", lambda: locale.setlocale(locale.LC_ALL)),
    "rights of new files": ("os.umask(0)", umask),
    "errors in threads": ("threading.excepthook = print", lambda: threading.excepthook),
    "sockets": ("socket.setdefaulttimeout(0.1)", socket.getdefaulttimeout),
}
IMPORTS = """
import gc, locale, logging, os, random, signal, socket, sys, threading, warnings
from PIL import Image, ImageFile
import numpy as np
import torch
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a user's module and gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def write(text: str) -> str:
        names.append(f"users_settings_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(IMPORTS + text)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["import", "factory"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_module_sets_is_undone(module: Callable[[str], str], change: str, place: str) -> None:
    line, read = CHANGES[change]
    at_import, at_build = (line, "pass") if place == "import" else ("", line)
    name = module(f"{at_import}\ndef build():\n    {at_build}\n    return torch.nn.Linear(2, 2)\n")
    before = read()
    build_classifier(f"{name}:build", {})
    assert read() == before


@given(changes=st.lists(st.sampled_from(sorted(CHANGES)), max_size=6), fails=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_of_them_together_even_where_it_fails(changes: list[str], fails: bool) -> None:
    before = {change: read() for change, (_, read) in CHANGES.items()}
    with contextlib.suppress(ZeroDivisionError), undone("this"):
        for change in changes:
            exec(IMPORTS + CHANGES[change][0])
        if fails:
            raise ZeroDivisionError
    assert {change: read() for change, (_, read) in CHANGES.items()} == before


BUILD = "\ndef build(): return torch.nn.Linear(2, 2)\n"
REPLACED = {
    "a function": ("torch.relu = lambda x: x", "torch.relu"),
    "a function, wrapped": (
        "F.softmax = functools.wraps(F.softmax)(lambda *a, inner=F.softmax, **k: inner(*a, **k))",
        "torch.nn.functional.softmax",
    ),
    "a layer's forward": ("torch.nn.Linear.forward = lambda self, x: x", "torch.nn.modules.linear.Linear.forward"),
    "a method": ("torch.Tensor.relu = lambda self: self", "torch.Tensor.relu"),
    "a class": ("class Mine(torch.nn.Linear): pass\ntorch.nn.Linear = Mine", None),
    "another of the same": ("np.argmax = np.argmin", "numpy.argmax"),
    "of numpy": ("np.argmax = functools.partial(np.argmin)", "numpy.argmax"),
    "of Pillow": ("Image.open = lambda *a, **k: None", "PIL.Image.open"),
    "of Python": ("builtins.print = lambda *a, **k: None", "builtins.print"),
    "a time source": ("time.monotonic = lambda: 0.0", "time.monotonic"),
}


@pytest.mark.parametrize("case", REPLACED)
def test_a_function_in_place_of_a_librarys_is_taken_out_and_told(
    module: Callable[[str], str], case: str, caplog: pytest.LogCaptureFixture
) -> None:
    line, name = REPLACED[case]
    imports = "import builtins, functools, time\nimport torch.nn.functional as F\n"
    before = attributes()
    build_classifier(f"{module(f'{imports}{line}{BUILD}')}:build", {})
    (told,) = caplog.messages
    assert " puts functions of its own in place of " in told
    assert name is None or f" in place of {name}, for all of the process: they are taken out again; give them" in told
    after = attributes()
    assert all(after[at] is value for at, value in before.items())
    assert after.keys() - before.keys() == set()


def test_what_replaces_a_function_in_forward_is_refused_by_the_proof() -> None:
    class Replaces(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.relu = torch.tanh
            return x.flatten(1)[:, :2]

    before = torch.relu
    with pytest.raises(ConfigError, match=r"the classifier puts functions of its own in place of torch\.relu while it"):
        prove(Replaces().eval(), PREPROCESSING, torch.rand(4, 1, 6, 6), gradients=False)
    assert torch.relu is before


def test_in_another_thread_too(module: Callable[[str], str]) -> None:
    name = module("torch.set_num_threads(3)\ndef build(): return torch.nn.Linear(2, 2)\n")
    before, built = torch.get_num_threads(), []
    thread = threading.Thread(target=lambda: built.append(build_classifier(f"{name}:build", {})))
    thread.start()
    thread.join()
    assert len(built) == 1
    assert torch.get_num_threads() == before


def test_inference_mode_left_on_is_refused(module: Callable[[str], str]) -> None:
    name = module("mode = torch.inference_mode()\nmode.__enter__()\ndef build(): return torch.nn.Linear(2, 2)\n")
    with pytest.raises(ConfigError) as caught:
        build_classifier(f"{name}:build", {})
    sys.modules[name].mode.__exit__(None, None, None)
    assert str(caught.value) == (
        f"classifier '{name}:build' leaves torch in inference mode: enter it by `with torch.inference_mode():` only"
    )


def test_initial_weights_of_the_examples_go_by_the_callers_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build_classifier("digits_cnn", {}).state_dict()
        second = build_classifier("digits_cnn", {}).state_dict()
    assert not torch.equal(first["fc1.weight"], second["fc1.weight"])


def test_a_users_module_that_imports_torchvision(tmp_path: Path) -> None:
    (tmp_path / "with_torchvision.py").write_text(
        "import torchvision\ndef build(): return torchvision.models.resnet18(num_classes=3)\n"
    )
    code = "from askance.classifiers import build_classifier; build_classifier('with_torchvision:build', {}); print(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr


# What the caller of askance.calibrate has set


@contextlib.contextmanager
def odd() -> Iterator[None]:
    """A caller's process, set as some people's are."""
    with np.errstate(all="raise"), torch.no_grad():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", [odd, torch.inference_mode], ids=["odd", "inference"])
def test_a_live_calibration_goes_on_in_an_odd_process(tmp_path: Path, mode: Callable[[], Any]) -> None:
    classifier = Net()
    plain = calibrated(classifier, tmp_path / "plain")
    with mode():
        set_by_caller = torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()
        bundle = calibrated(classifier, tmp_path / "odd")
        assert (torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()) == set_by_caller
    assert bundle.evaluation().auroc == plain.evaluation().auroc
    assert askance.open(tmp_path / "odd" / "bundle", classifier=classifier)(DATA["fit"][0][0]).prediction is not None


def test_ordinary_gives_back_a_default_device() -> None:
    torch.set_default_device("meta")
    try:
        with ordinary():
            assert torch.zeros(1).device.type == "cpu"
        assert torch.zeros(1).device.type == "meta"
    finally:
        torch.set_default_device(None)
