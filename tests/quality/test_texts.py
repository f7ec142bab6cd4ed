"""The texts that come with the package."""

import pytest

from hfpipe.quality import texts


def test_there_are_texts_of_several_kinds():
    assert {"code", "dialogue", "prose", "technical"} <= set(texts.held_out()) & set(texts.calibration())
    for kinds in (texts.held_out(), texts.calibration()):
        assert list(kinds) == sorted(kinds)
        assert all(len(text) > 1000 for text in kinds.values())


def test_nothing_that_is_measured_on_is_calibrated_on():
    assert paragraphs(texts.held_out()) & paragraphs(texts.calibration()) == set()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_share_of_the_text_is_whole_paragraphs_from_its_beginning(share):
    whole, part = texts.held_out(), texts.held_out(share)
    assert list(part) == list(whole)
    for kind, text in part.items():
        assert whole[kind].startswith(text + "\n\n")
        assert share * len(whole[kind]) <= len(text) <= share * len(whole[kind]) + 2000


def paragraphs(kinds):
    """Those that are long enough not to be the same by chance."""
    parts = {part.strip() for text in kinds.values() for part in text.split("\n\n")}
    return {part for part in parts if len(part) > 60}
