"""What the README and docs/ say is so."""

import json
import re
from pathlib import Path

import pytest

from hfpipe import errors
from hfpipe.batch.records import ERROR_TYPES
from tests import docs
from tests.cli.conftest import write_echo_model
from tests.cli.shell import run_hfpipe
from tests.docs import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture
def plain_model(tmp_path: Path) -> Path:
    return write_echo_model(tmp_path / "model")


def test_help_blocks_are_what_the_commands_print() -> None:
    text = docs.COMMANDS.read_text()
    assert docs.commands(text) == ["run", "batch", "export", "bench", "models"]
    assert docs.generated(text) == text


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest$", README, re.MULTILINE)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert command in lines


def test_the_table_of_exit_codes_has_those_of_the_errors() -> None:
    table = README.partition("## Exit codes")[2].partition("##")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    raised = {kind.exit_code for kind in kinds}
    assert documented == {0, 1, 2, 3, 130}
    assert raised <= documented


def test_the_layout_names_every_part_of_the_package() -> None:
    """As code, in the floor table: a word of prose that happens to be a part's name does not count."""
    shown = set(re.findall(r"`([\w.]+)/?`", (ROOT / "docs" / "layout.md").read_text()))
    package = ROOT / "hfpipe"
    parts = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert {path.name for path in parts if not path.name.startswith("_")} <= shown


def test_links_lead_to_files() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def documented_fields(table: str) -> list[str]:
    text = (ROOT / "docs" / "fields.md").read_text()
    rows = text.partition(f"<!-- fields: {table} -->")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)


def test_the_fields_of_results_are_those_that_the_commands_write(plain_model: Path, tmp_path: Path) -> None:
    answer = run_hfpipe("run", plain_model, "hi", "-b", "echo", "--json")
    assert list(json.loads(answer.out)) == documented_fields("run")
    (tmp_path / "q.jsonl").write_text('{"prompt": "hi"}\n')
    batch = run_hfpipe("batch", tmp_path / "q.jsonl", "-m", plain_model, "-b", "echo")
    assert list(json.loads(batch.out)) == documented_fields("result")


def test_the_types_of_errors_are_those_of_records() -> None:
    text = (ROOT / "docs" / "fields.md").read_text()
    (line,) = re.findall(r"^The types of errors: (.*)\.$", text, re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == list(ERROR_TYPES.values())
