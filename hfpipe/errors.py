"""The errors that a user can meet. Each has the exit code of the process and a hint: the next step.

HFPipeError              exit 1
├── UsageError           exit 2   a command or call that is wrong
│   ├── TemplateError             a template that does not parse, or refuses its values
│   │   └── MissingVariable       a variable without a value
│   └── UnsupportedOption         the chosen backend cannot honour an option
├── ModelError                    the model cannot be found or read
│   ├── ModelNotFound
│   ├── AccessDenied              gated, or a token is missing
│   ├── DownloadError             the network, the index or the Hub failed; run again to resume
│   └── UnsupportedModel          the model exists, and cannot be run
├── ContextLengthError            the prompt does not fit the model's context
├── BackendError                  the engine failed
│   ├── ServerUnavailable         no request is answered now: the server is gone, or takes no more
│   └── OutOfMemory
└── ConversionError               a conversion in a child process failed
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class HFPipeError(Exception):
    """Every error that a user can meet. A traceback shows the message, the details and the hint.

    Args:
        message: What is wrong, in one line. Here and in the hint an option has its name of the command line,
            --target-lang, which a traceback shows as the keyword argument, target_lang.
        hint: What to do about it.
        details: Lines that help to find out more.

    Example:
        >>> import hfpipe
        >>> try:
        ...     hfpipe.load("smollm2", max_token=50)
        ... except hfpipe.HFPipeError as error:
        ...     print(error.hint)
        Did you mean 'max_tokens'?
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        """As Python shows it: with the hint, and with options named as keyword arguments."""
        return "\n".join([_in_python(self.message), *self.details, *([_in_python(self.hint)] if self.hint else [])])

    def as_data(self) -> dict[str, Any]:
        """The error as values of JSON, for another process."""
        classes = [kind.__name__ for kind in type(self).__mro__]
        return {"classes": classes, "message": self.message, "hint": self.hint, "details": self.details}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> HFPipeError:
        """The error of which `as_data` was taken, in the nearest of its classes that is one of these here."""
        kind = next(globals()[name] for name in data["classes"] if name in globals())
        error: HFPipeError = kind(data["message"], hint=data["hint"], details=data["details"])
        return error


class UsageError(HFPipeError):
    exit_code = 2


class TemplateError(UsageError): ...


class MissingVariable(TemplateError): ...


class UnsupportedOption(UsageError): ...


class ModelError(HFPipeError): ...


class ModelNotFound(ModelError): ...


class AccessDenied(ModelError): ...


class DownloadError(ModelError): ...


class UnsupportedModel(ModelError): ...


class ContextLengthError(HFPipeError): ...


class ConversionError(HFPipeError): ...


class BackendError(HFPipeError): ...


class ServerUnavailable(BackendError): ...


class OutOfMemory(BackendError): ...


# An option in a message; not in a command, which has `backticks`.
_OPTION = re.compile(r"`[^`]*`|(?P<aside> \(--?[a-z][a-z-]*\))|(?<![^\s(])--(?P<name>[a-z][a-z-]*)")
_KEYWORDS = {"model_kwarg": "model_kwargs", "var": "variables"}


def _in_python(text: str) -> str:
    """A message with the names of keyword arguments, and without options in parentheses: words before them say it."""

    def keyword(found: re.Match[str]) -> str:
        if found["aside"]:
            return ""
        name = (found["name"] or "").replace("-", "_")
        return _KEYWORDS.get(name, name) or found[0]

    return _OPTION.sub(keyword, text)


def is_disk_full(error: Exception) -> bool:
    """Also where it is a quota that is used up; OpenVINO and the libraries in Rust have errors of their own for it."""
    said = str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "iostream error" in said or "No space left" in said


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint naming the known word that `word` was probably meant to be."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else None
