"""askance: an image classifier's answers, each with a calibrated verdict on whether to trust it.

In process::

    import askance

    screen = askance.open("bundle")
    answer = screen("image.png")  # or numpy, torch, PIL; one or many
    print(answer.label, answer.verdict, answer.p_value)

Over the wire, the same Answer::

    with askance.Client("127.0.0.1:8500") as client:
        answer = client.screen("image.png")

What is named here is imported when it is first used: `import askance` itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from askance.answers import Answer as Answer
    from askance.answers import DetectorVerdict as DetectorVerdict
    from askance.answers import Prediction as Prediction
    from askance.answers import Reason as Reason
    from askance.answers import Screening as Screening
    from askance.answers import Verdict as Verdict
    from askance.calibration.live import calibrate as calibrate
    from askance.calibration.live import evaluate as evaluate
    from askance.detectors.bundle import Bundle as Bundle
    from askance.errors import AskanceError as AskanceError
    from askance.errors import BundleError as BundleError
    from askance.errors import CalibrationError as CalibrationError
    from askance.errors import ConfigError as ConfigError
    from askance.errors import DataError as DataError
    from askance.errors import ScreenError as ScreenError
    from askance.evaluation import Evaluation as Evaluation
    from askance.judgement import Calibration as Calibration
    from askance.judgement import Levels as Levels
    from askance.screened import ScreenedClassifier as ScreenedClassifier
    from askance.screened import open as open  # noqa: A004 (as tarfile.open, Image.open)
    from askance.service.client import AsyncClient as AsyncClient
    from askance.service.client import Client as Client
    from askance.service.client_messages import Credentials as Credentials
    from askance.service.client_messages import ServiceError as ServiceError

_HOMES = {
    "Answer": "askance.answers",
    "AskanceError": "askance.errors",
    "AsyncClient": "askance.service.client",
    "Bundle": "askance.detectors.bundle",
    "BundleError": "askance.errors",
    "Calibration": "askance.judgement",
    "CalibrationError": "askance.errors",
    "Client": "askance.service.client",
    "ConfigError": "askance.errors",
    "Credentials": "askance.service.client_messages",
    "DataError": "askance.errors",
    "DetectorVerdict": "askance.answers",
    "Evaluation": "askance.evaluation",
    "Levels": "askance.judgement",
    "Prediction": "askance.answers",
    "Reason": "askance.answers",
    "ScreenError": "askance.errors",
    "ScreenedClassifier": "askance.screened",
    "Screening": "askance.answers",
    "ServiceError": "askance.service.client_messages",
    "Verdict": "askance.answers",
    "calibrate": "askance.calibration.live",
    "evaluate": "askance.calibration.live",
    "open": "askance.screened",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 (strings, all of them)


def __getattr__(name: str) -> Any:  # PEP 562
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("askance")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        from askance.errors import did_you_mean

        raise AttributeError(f"module 'askance' has no attribute {name!r}: {did_you_mean(name, __all__)}")
    globals()[name] = found  # the next look-up finds it without us
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
