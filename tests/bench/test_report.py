"""Samples in numbers, and reports that are read again."""

import json
import math
import statistics
from dataclasses import asdict

import pytest

from hfpipe.bench.report import Measured, Sample, read_report
from hfpipe.errors import UsageError
from tests.bench import made


@pytest.mark.parametrize("values", [[3.0], [2.0, 5.0, 1.0], [4.0, 1.0, 2.0, 8.0]])
def test_samples_come_to_their_median_and_range(values):
    row = made.configuration("a")
    row.samples = [Sample("single", number, {"x": value}) for number, value in enumerate([*values, math.nan])]
    assert row.measured("x") == Measured(statistics.median(values), min(values), max(values))
    assert row.measured("y") is None


def changed(place, value):
    """The JSON of a report with one value changed, or removed."""
    data = json.loads(json.dumps(asdict(made.usual())))
    *path, name = place.split(".")
    inner = data
    for one in path:
        inner = inner[int(one) if one.isdecimal() else one]
    if value is ...:
        del inner[name]
    else:
        inner[name] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("arguments.prompt_tokens", value) for value in ("512", 0, ...)),
        *(("arguments.new_tokens", value) for value in (None, True, ...)),
        *(("arguments.batches", value) for value in (8, "18", [1, 0.5], None, [0])),
        *(("arguments", value) for value in ([], None, ...)),
        *(("host", value) for value in ([], ...)),
        ("created", ...),
        *(("configurations", value) for value in (1, ["a"], ...)),
        ("configurations.0.model", None),
        ("configurations.0.samples", [{"task": "single"}]),
        ("version", 99),
    ],
)
def test_what_is_not_a_report_is_one_line_with_the_place(tmp_path, place, value):
    path = tmp_path / "report.json"
    path.write_text(changed(place, value))
    with pytest.raises(UsageError, match=r"report\.json is not a report of this version of hfpipe bench: ") as caught:
        read_report(path)
    assert place.rpartition(".")[2] in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "\x00"])
def test_what_is_not_json(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"is not a report of this version of hfpipe bench: .*JSON"):
        read_report(path)
