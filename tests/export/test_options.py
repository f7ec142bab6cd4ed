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


def flag(name):
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("weight_format", [None, *WEIGHT_FORMATS])
def test_a_format_alone_is_enough(weight_format):
    assert ExportOptions(weight_format).weight_format == weight_format


@pytest.mark.parametrize("weight_format", ["int2", "INT4", "", "bf16"])
def test_an_unknown_format_names_those_there_are(weight_format):
    with pytest.raises(UsageError, match="Unknown weight format") as caught:
        ExportOptions(weight_format)
    assert all(name in caught.value.hint for name in WEIGHT_FORMATS)


@pytest.mark.parametrize(("name", "value"), INT4.items())
def test_each_option_goes_with_int4(name, value):
    assert getattr(ExportOptions("int4", **{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), INT4.items())
@pytest.mark.parametrize("weight_format", [None, "fp32", "fp16", "int8"])
def test_no_option_is_dropped_in_silence(weight_format, name, value):
    if (weight_format, name) == ("int8", "sym"):
        assert ExportOptions("int8", sym=True).sym
        return
    with pytest.raises(UsageError, match=f"{flag(name)} needs --weight-format int4"):
        ExportOptions(weight_format, **{name: value})


@pytest.mark.parametrize("group_size", [1, 32, 128, 1000, -1])
def test_group_sizes(group_size):
    assert ExportOptions("int4", group_size=group_size).group_size == group_size


@pytest.mark.parametrize("group_size", [0, -2])
def test_group_sizes_that_mean_nothing(group_size):
    with pytest.raises(UsageError, match=f"must be positive, or -1 for whole channels, not {group_size}"):
        ExportOptions("int4", group_size=group_size)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_ratios_out_of_range(ratio):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        ExportOptions("int4", ratio=ratio)


@pytest.mark.parametrize("name", ["calibration", "scale_estimation", "gptq"])
def test_what_needs_text_excludes_data_free(name):
    with pytest.raises(UsageError, match=f"{flag(name)} needs calibration text, which --data-free leaves out"):
        ExportOptions("int4", data_free=True, **{name: INT4[name]})


@pytest.mark.parametrize("name", ["sym", "ratio", "group_size", "awq"])
def test_what_needs_no_text_goes_with_data_free(name):
    ExportOptions("int4", data_free=True, **{name: INT4[name]})


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--model", "--model"),
        ("--model=x", "--model"),
        ("-m", "-m"),
        ("-mx", "-m"),
        ("--weight-format", "--weight-format"),
        ("--weight-format=int8", "--weight-format"),
    ],
)
def test_optimum_cli_is_not_told_otherwise(word, named):
    with pytest.raises(UsageError, match=f"^{named} is set by hfpipe and cannot be given after --"):
        ExportOptions("int4", extra=("--variant", "x", word, "y"))


def test_other_words_go_to_optimum_cli():
    extra = ("--model-kwargs", "{}", "--pad-token-id", "-1", "--variant=x")
    assert ExportOptions(extra=extra).extra == extra
