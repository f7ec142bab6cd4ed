"""What may be asked of an export, and what goes with what."""

from pathlib import Path

import pytest

from hfpipe.errors import UsageError
from hfpipe.export import WEIGHT_FORMATS, ExportOptions

# For each option of quantization a value that asks for something.
VALUES = {
    "group_size": 32,
    "sym": True,
    "ratio": 0.8,
    "awq": True,
    "scale_estimation": True,
    "gptq": True,
    "calibration": Path("text"),
    "data_free": True,
}
OF_TEXT = {"calibration", "scale_estimation", "gptq"}
# What else than int4 takes, by option.
TAKEN = {name: {"nf4", "cb4"} for name in VALUES} | {"sym": {"int8"}}
TAKEN |= {name: TAKEN[name] | {"mxfp4"} for name in ("group_size", "ratio", "data_free")}


@pytest.mark.parametrize("weight_format", ["int2", "INT4", "", "bf16"])
def test_an_unknown_format_names_those_there_are(weight_format):
    with pytest.raises(UsageError, match="Unknown weight format") as caught:
        ExportOptions(weight_format)
    assert all(name in caught.value.hint for name in WEIGHT_FORMATS)


@pytest.mark.parametrize("weight_format", [None, *WEIGHT_FORMATS])
@pytest.mark.parametrize(("name", "value"), VALUES.items())
def test_no_option_is_dropped_in_silence(weight_format, name, value):
    if weight_format in {"int4"} | TAKEN[name]:
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
    ("weight_format", "name", "formats"),
    [
        ("int8", "awq", "int4, nf4 or cb4"),
        ("mxfp4", "gptq", "int4, nf4 or cb4"),
        ("fp16", "ratio", "int4, nf4, cb4 or mxfp4"),
        ("nf4", "sym", "int4 or int8"),
    ],
)
def test_an_option_that_a_format_cannot_take_names_those_that_can(weight_format, name, formats):
    with pytest.raises(UsageError, match=f"^{name} needs weight_format {formats}[.]$"):
        ExportOptions(weight_format, **{name: VALUES[name]})


def test_groups_of_mxfp4_are_of_32():
    assert ExportOptions("mxfp4", group_size=32).group_size == 32
    with pytest.raises(UsageError, match="group_size 64 does not work with weight_format mxfp4") as caught:
        ExportOptions("mxfp4", group_size=64)
    assert "Leave it out" in caught.value.hint


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
