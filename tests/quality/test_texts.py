"""The texts that come with the package."""

from hfpipe.quality import texts


def test_there_are_texts_of_several_kinds():
    assert {"code", "dialogue", "prose", "technical"} <= set(texts.held_out()) & set(texts.calibration())
    for kinds in (texts.held_out(), texts.calibration()):
        assert list(kinds) == sorted(kinds)
        assert all(len(text) > 1000 for text in kinds.values())


def test_nothing_that_is_measured_on_is_calibrated_on():
    assert paragraphs(texts.held_out()) & paragraphs(texts.calibration()) == set()


def paragraphs(kinds):
    """Those that are long enough not to be the same by chance."""
    parts = {part.strip() for text in kinds.values() for part in text.split("\n\n")}
    return {part for part in parts if len(part) > 60}
