"""What may be asked of an export, and what goes with what."""

from pathlib import Path

import pytest

from hfpipe.errors import UsageError
from hfpipe.export import WEIGHT_FORMATS, ExportOptions

# For each option of quantization a value that asks for something.
INT4 = {
    "group_size": 64,
    "sym": True,
    "ratio": 0.8,
    "awq": True,
    "scale_estimation": True,
    "gptq": True,
    "calibration": Path("text"),
    "data_free": True,
}
OF_TEXT = {"calibration", "scale_estimation", "gptq"}


@pytest.mark.parametrize("weight_format", ["int2", "INT4", "", "bf16"])
def test_an_unknown_format_names_those_there_are(weight_format):
    with pytest.raises(UsageError, match="Unknown weight format") as caught:
        ExportOptions(weight_format)
    assert all(name in caught.value.hint for name in WEIGHT_FORMATS)


@pytest.mark.parametrize("weight_format", [None, *WEIGHT_FORMATS])
@pytest.mark.parametrize(("name", "value"), INT4.items())
def test_no_option_is_dropped_in_silence(weight_format, name, value):
    if weight_format == "int4" or (weight_format, name) == ("int8", "sym"):
        assert getattr(ExportOptions(weight_format, **{name: value}), name) == value
    else:
        with pytest.raises(UsageError, match=f"{name} needs weight_format int4"):
            ExportOptions(weight_format, **{name: value})
    if name in OF_TEXT:
        with pytest.raises(UsageError, match=f"{name} needs calibration text, which data_free leaves out"):
            ExportOptions("int4", **{"data_free": True, name: value})
    else:
        ExportOptions("int4", **{"data_free": True, name: value})


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("group_size", [1, 32, 128, 1000, -1], [0, -2], "must be positive, or -1 for whole channels, not "),
        ("ratio", [0.1, 1.0], [0.0, -0.1, 1.01, float("nan")], "above 0 and at most 1"),
    ],
)
def test_numbers(name, good, bad, message):
    for value in good:
        assert getattr(ExportOptions("int4", **{name: value}), name) == value
    for value in bad:
        with pytest.raises(UsageError, match=message):
            ExportOptions("int4", **{name: value})


@pytest.mark.parametrize("word", ["--model", "--model=x", "-m", "-mx", "--weight-format", "--weight-format=int8"])
def test_optimum_cli_is_not_told_otherwise(word):
    named = word.partition("=")[0].removesuffix("x")
    with pytest.raises(UsageError, match=f"^`{named}` is set by hfpipe and cannot be given after --"):
        ExportOptions("int4", extra=("--variant", "x", word, "y"))
    extra = ("--model-kwargs", "{}", "--pad-token-id", "-1", "--variant=x")
    assert ExportOptions(extra=extra).extra == extra
