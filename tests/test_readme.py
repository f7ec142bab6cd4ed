"""What the README says is so."""

import re

from hfpipe import errors
from tests import readme

ROOT = readme.README.parent
TEXT = readme.README.read_text()


def test_help_blocks_are_what_the_commands_print() -> None:
    assert readme.commands(TEXT) == ["run", "batch", "export", "bench"]
    assert readme.generated(TEXT) == TEXT


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest$", TEXT, re.MULTILINE)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert command in lines


def test_the_table_of_exit_codes_has_those_of_the_errors() -> None:
    table = TEXT.partition("## Exit codes")[2].partition("##")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    raised = {kind.exit_code for kind in kinds}
    assert documented == {0, 1, 2, 3, 130}
    assert raised <= documented


def test_the_layout_names_every_part_of_the_package() -> None:
    shown = TEXT.partition("## How the code is laid out")[2]
    package = ROOT / "hfpipe"
    parts = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    missing = [path.name for path in parts if not path.name.startswith("__") and path.name not in shown]
    assert missing == []
