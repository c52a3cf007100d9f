"""Entry point: runs the command line and turns every foreseen error into one line and exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from askance.errors import AskanceError, NobodyReadsError, did_you_mean, extra_needed
from askance.streams import own_streams
from askance.writing import REMEDIES, cannot_write

if TYPE_CHECKING:
    from typer.exceptions import TyperException

TORCH_PACKAGES = ("torch", "torchvision")
EXTRA_PACKAGES = (
    "advertorch",
    "foolbox",
    "pyautoattack",
    "cv2",
    "sklearn",
    "scipy",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxscript",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `askance` with `arguments` (default: the process's own) and exit."""
    if arguments is None and sys.argv[1:2] == ["serve"] and hasattr(signal, "SIGHUP"):
        # before all imports: until a hangup means "load anew", a start is as good, and nothing to die of
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    own_streams()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 (a return for each way to end)
    """Run `askance` and return its exit code.

    0, 2 for anything the user can mend, 130 when interrupted, 141 where nobody reads its output any more (`| head`).
    """
    try:
        Path.cwd()
    except OSError:  # torch's mathematics would end the process, in words of its own
        return _fail("the working folder has been removed: change to one that is there")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are for those who debug gRPC, not for our log
    from typer.exceptions import Abort, TyperException
    from typer.main import get_command

    from askance.cli import app

    try:
        outcome = get_command(app).main(args=arguments, prog_name="askance", standalone_mode=False)
        sys.stdout.flush()  # what fails does so here, and not when Python ends
    except TyperException as error:
        return _fail(f"{_told(error)} (askance --help shows what there is)")
    except (Abort, KeyboardInterrupt):
        print("askance: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except NobodyReadsError:
        return 141
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in (*TORCH_PACKAGES, *EXTRA_PACKAGES):
            raise
        return _fail(extra_needed(package, "calibration" if package in EXTRA_PACKAGES else "torch"))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a path of the user's, wherever it is used
            return _fail(f"{error.filename}: {(error.strerror or 'cannot be used').lower()}")
        if isinstance(error, OSError) and error.errno in REMEDIES:  # of a library's own
            error = cannot_write("a file", error)
        if not isinstance(error, AskanceError):
            raise
        return _fail(str(error))
    return outcome if isinstance(outcome, int) else 0


def _told(error: TyperException) -> str:
    """What is wrong with the command line; of a misspelt option in the words of every misspelt name."""
    context, name = getattr(error, "ctx", None), getattr(error, "option_name", "")
    if context is None or not hasattr(error, "possibilities"):  # typer's own class for options is private
        return error.format_message()
    known = [one for parameter in context.command.get_params(context) for one in parameter.opts if one.startswith("--")]
    return f"No such option {name!r}: {did_you_mean(name, known)}"


def _fail(message: str) -> int:
    print(f"askance: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
