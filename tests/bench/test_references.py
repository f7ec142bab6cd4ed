"""Source models are scored once in a run, and what they said is removed at its end."""

import pytest
from filelock import FileLock

from hfpipe import models
from hfpipe.bench import references as module
from hfpipe.bench.references import References
from hfpipe.errors import ConversionError
from hfpipe.quality import Reference
from hfpipe.types import LoadOptions, Silent


class Stages(Silent):
    def __init__(self):
        self.seen = []

    def stage(self, text):
        self.seen.append(text)


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """What was scored: the model and the texts."""
    found = []

    def make_reference(source, folder, *, texts, **_):
        found.append((source.reference, texts))
        (folder / "rows").write_text("of gigabytes")
        if "bad" in (texts or ()):
            raise ConversionError("It cannot be scored.")
        return Reference(folder, (), 1, "float32")

    monkeypatch.setattr(module, "make_reference", make_reference)
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
    return found


@pytest.fixture
def left(tmp_path):
    """What stands in the place of references."""
    return lambda: sorted((tmp_path / "references").iterdir())


def test_each_is_made_at_its_first_call(tiny_llama, tiny_gpt2, scored, left):
    llama, gpt2 = (models.resolve(str(folder)) for folder in (tiny_llama, tiny_gpt2))
    stages, own = Stages(), {"prose": "a text"}
    with References(LoadOptions(), stages) as references:
        first = references.of(llama)
        assert references.of(llama) is first
        others = [references.of(gpt2), references.of(llama, own)]
        assert references.of(llama, dict(own)) is others[1]
        assert len({one.folder for one in (first, *others)}) == 3
        assert all((one.folder / "rows").is_file() for one in (first, *others))
    assert scored == [(str(tiny_llama), None), (str(tiny_gpt2), None), (str(tiny_llama), own)]
    assert stages.seen == [f"Scoring {name}" for name, _ in scored]
    assert left() == []


def test_one_that_cannot_be_made_is_tried_once_and_leaves_nothing(tiny_llama, scored, left):
    llama = models.resolve(str(tiny_llama))
    with References(LoadOptions(), Silent()) as references:
        for _ in range(2):
            with pytest.raises(ConversionError, match="It cannot be scored"):
                references.of(llama, {"bad": ""})
            assert left() == []
    assert len(scored) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConversionError])
def test_whatever_ends_the_run_they_are_removed(tiny_llama, scored, left, error):
    def run():
        with References(LoadOptions(), Silent()) as references:
            assert references.of(models.resolve(str(tiny_llama))).folder.is_dir()
            raise error("The end.")

    with pytest.raises(error):
        run()
    assert left() == []


def test_what_a_killed_run_left_is_removed_and_what_another_uses_is_not(scored, tiny_llama, tmp_path):
    unused, used = tmp_path / "references" / "left.tmp", tmp_path / "references" / "used.tmp"
    for folder in (unused, used):
        folder.mkdir(parents=True)
        (folder / "log_probabilities.f16").write_bytes(b"x")
    with FileLock(used.with_name(".used.tmp.lock")), References(LoadOptions(), Silent()) as references:
        mine = references.of(models.resolve(str(tiny_llama))).folder
        assert mine.is_dir()
        assert not unused.exists()
        assert used.exists()
    assert not mine.exists()
