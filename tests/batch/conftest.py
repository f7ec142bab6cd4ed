"""What the tests of a journal share."""

import pytest

from tests.batch.work import write_questions


@pytest.fixture
def source(tmp_path):
    """An input of 20 records; those at 3, 7, 11, 15 and 19 are errors."""
    return write_questions(tmp_path / "q.jsonl", 20)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"
