"""The tree of errors, and the codes that end the process."""

import ast
import copy
import inspect
import pickle
import traceback
from pathlib import Path

import pytest

import hfpipe
from hfpipe import errors
from hfpipe.batch.job import Options as BatchOptions
from hfpipe.errors import HFPipeError, UsageError, nearest
from hfpipe.export import ExportOptions

PACKAGE = Path(hfpipe.__file__).parent
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HFPipeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_is_that_of_the_branch(kind):
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


def test_a_traceback_shows_the_hint():
    assert (str(UsageError("It broke.")), UsageError("It broke.").hint) == ("It broke.", None)
    shown = "".join(traceback.format_exception(UsageError("It broke.", hint="Mend it.", details=["line 7"])))
    assert shown.endswith("UsageError: It broke.\nline 7\nMend it.\n")


def test_options_are_named_as_where_they_are_given():
    """As on the command line in `message` and `hint`, by keyword arguments in what Python shows."""
    said = UsageError(
        "torch cannot honour --model-kwarg a.", hint="Leave --target-lang out; `a --b` helps; steps (-n)."
    )
    assert said.message == "torch cannot honour --model-kwarg a."
    assert str(said) == "torch cannot honour model_kwargs a.\nLeave target_lang out; `a --b` helps; steps."
    assert str(errors.HFPipeError.from_data(said.as_data())) == str(said)
    assert str(UsageError("x --- -- '--a' a--b /--c")) == "x --- -- '--a' a--b /--c"


@pytest.mark.parametrize(
    "path", sorted(set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("cli/*"))), ids=lambda path: path.name
)
def test_an_option_that_a_message_names_is_a_keyword_argument_too(path):
    """Of hfpipe.load, batch, export or bench. Words of a command have no space."""
    of_functions = [inspect.signature(use_case.run).parameters for use_case in (hfpipe.export, hfpipe.bench)]
    known = {"fail_slower", *BatchOptions.__annotations__, *ExportOptions.__annotations__}.union(*of_functions)
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            names = (
                [found[0] for found in errors._OPTION.finditer(node.value) if found["name"]]
                if " " in node.value
                else []
            )
            assert {errors._in_python(name) for name in names} <= known, node.value


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
