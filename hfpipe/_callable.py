"""Packages that can be called: `hfpipe.batch`, `hfpipe.bench` and `hfpipe.export` are functions to whoever uses them.

A file of its own on the lowest floor, since the packages that use it may not import `hfpipe` itself.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.run(*args, **options)


def callable_package(name: str) -> None:
    """Have a call of the package `name` call its `run`: the import of any of its modules makes the package an attribute
    of hfpipe. A package calls this with its own `__name__`."""
    sys.modules[name].__class__ = _CallablePackage
