"""The tree of errors, and the codes that end the process."""

import inspect

import pytest

from hfpipe import errors
from hfpipe.errors import HFPipeError, UsageError, nearest

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HFPipeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_is_that_of_the_branch(kind):
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_its_message_and_a_hint(kind):
    error = kind("It broke.", hint="Mend it.")
    assert (str(error), error.message, error.hint) == ("It broke.", "It broke.", "Mend it.")
    assert kind("It broke.").hint is None


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
