"""Line: questions and answers between two processes, both ways, on one pipe."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from askance.errors import AskanceError

logger = logging.getLogger(__name__)

Answers = Mapping[str, Callable[..., Any]]


class LineClosedError(AskanceError):
    """The process at the other end is gone."""


class Line:
    """One end. Both processes trust each other: what is said travels as pickles.

    Args:
        connection: this end of a duplex pipe.
        name: of the process at the other end, for the messages.
    """

    def __init__(self, connection: Connection[Any, Any], name: str) -> None:
        self._connection = connection
        self._name = name
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._closed = False
        self._answers: Future[tuple[Answers, Callable[[], None]]] = Future()
        threading.Thread(target=self._listen, name="askance-line", daemon=True).start()

    def listen(self, answers: Answers, closed: Callable[[], None] = lambda: None) -> None:
        """Answer questions from now on, those before among them, each on a thread of its own.

        Args:
            answers: what answers each kind of question. An AskanceError it raises is raised where it was asked.
            closed: called once the other process is gone.
        """
        self._answers.set_result((answers, closed))

    def begin(self, question: str, *details: Any) -> Future[Any]:
        """Ask, and do not wait. The answer is a LineClosedError where nobody is left to give it."""
        answer: Future[Any] = Future()
        with self._sending:
            number = next(self._numbers)
            self._waiting[number] = answer
            try:
                if self._closed:
                    raise BrokenPipeError
                self._connection.send((number, question, details))
            except OSError:
                self._waiting.pop(number, None)
                answer.set_exception(self._gone())
        return answer

    def ask(self, question: str, *details: Any, timeout: float | None = None) -> Any:
        """Ask, and wait for the answer.

        Raises:
            LineClosedError: nobody is left to give it.
            TimeoutError: it did not come in time.
            AskanceError: the other could not do what was asked.
        """
        return self.begin(question, *details).result(timeout)

    def _gone(self) -> LineClosedError:
        return LineClosedError(f"{self._name} is gone")

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, question, details = self._connection.recv()
                if question is not None:
                    threading.Thread(target=self._answer, args=(number, question, details), daemon=True).start()
                elif (waiting := self._waiting.pop(number, None)) is not None:
                    _settle(waiting, *details)
        with self._sending:
            self._closed = True
        while self._waiting:
            self._waiting.popitem()[1].set_exception(self._gone())
        self._answers.result()[1]()

    def _answer(self, number: int, question: str, details: tuple[Any, ...]) -> None:
        answer: Any = None
        failure: AskanceError | None = None
        try:
            answer = self._answers.result()[0][question](*details)
        except AskanceError as error:
            failure = error
        except Exception as error:
            logger.exception("asked for %s by %s", question, self._name)
            failure = AskanceError(f"{type(error).__name__}, see the log")
        with self._sending, suppress(OSError):  # gone, and so is whoever asked
            self._connection.send((number, None, (answer, failure)))


def _settle(waiting: Future[Any], answer: Any, failure: AskanceError | None) -> None:
    if failure is None:
        waiting.set_result(answer)
    else:
        waiting.set_exception(failure)
