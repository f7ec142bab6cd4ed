"""The tree of errors, and the codes that end the process."""

import copy
import inspect
import pickle
import traceback

import pytest

from hfpipe import errors
from hfpipe.errors import HFPipeError, UsageError, nearest

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HFPipeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_is_that_of_the_branch(kind):
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


def test_a_traceback_shows_the_hint():
    assert (str(UsageError("It broke.")), UsageError("It broke.").hint) == ("It broke.", None)
    shown = "".join(traceback.format_exception(UsageError("It broke.", hint="Mend it.", details=["line 7"])))
    assert shown.endswith("UsageError: It broke.\nline 7\nMend it.\n")


def test_an_error_can_be_copied_and_pickled():
    error = UsageError("It broke.", hint="Mend it.", details=["line 7"])
    for made in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(made), str(made), made.details) == (UsageError, str(error), ("line 7",))


def test_the_docstring_draws_the_tree():
    """Each error below its parent: depth by depth, as it is indented."""
    drawn = [line for line in errors.__doc__.splitlines() if line.startswith(("HFPipeError", "├", "│", "└", "    └"))]
    parents: list[str] = []
    for line in drawn:
        bare = line.lstrip("│├└─ ")
        depth = (len(line) - len(bare)) // 4
        name = bare.split()[0]
        parents = [*parents[:depth], name]
        assert [base.__name__ for base in reversed(getattr(errors, name).__mro__[:-3])] == parents
    assert sorted(line.lstrip("│├└─ ").split()[0] for line in drawn) == sorted(kind.__name__ for kind in KINDS)


def test_nearest():
    assert nearest("opnvino", ["torch", "openvino"]) == "Did you mean 'openvino'?"
    assert nearest("xyz", ["torch", "openvino"]) is None
    assert nearest("torch", []) is None
