"""`hfpipe batch` on real engines: with --exact, neither kills nor the size of a batch change a byte."""

import json

import pytest

from tests import tiny
from tests.cli.kills import killed_until_done
from tests.cli.shell import run_hfpipe

KILLS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Prompts of many lengths, and two that fail."""
    records = [{"prompt": tiny.SENTENCES[i % 5][: 5 + i], "max_tokens": 8 + i % 9} for i in range(40)]
    records[7], records[30] = {"x": 1}, {"prompt": "Hi", "n": 2, "top_p": 7}
    path = tmp_path_factory.mktemp("models") / "q.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_exactly_the_same_however_often_it_is_killed(request, tmp_path, source, engine):
    model = request.getfixturevalue("tiny_llama" if engine == "torch" else "tiny_llama_ov")
    args = ("batch", source, "-m", model, "--exact", "--temp", "0", "-q")
    undisturbed = run_hfpipe(*args, "--batch-size", "1")
    assert (undisturbed.code, undisturbed.err) == (3, b"")
    whole = undisturbed.out
    assert len({json.loads(line)["text"] for line in whole.splitlines()}) > 20
    assert killed_until_done(tmp_path, args, whole, KILLS, engine) > 0


def test_as_the_readme_has_it(tiny_llama, source):
    env = {"HFPIPE_MODEL": str(tiny_llama), "HFPIPE_MAX_TOKENS": "4"}
    ended = run_hfpipe("batch", "q.jsonl", "--device", "-1", "--batch-size", "2", env=env, cwd=source.parent)
    assert ended.code == 3
    assert [json.loads(line)["id"] for line in ended.out.splitlines()] == [str(i) for i in range(1, 41)]
    assert "2 failed (1 missing_variable, 1 invalid_record)." in ended.err.decode()
