"""Medians, verdicts, warnings, the advice and the comparison with a baseline, of made reports."""

import json
import shlex

import pytest

from hfpipe.bench.metrics import Workload
from hfpipe.bench.report import read_report
from hfpipe.bench.summary import advice, change, check_comparable, compare, number, share, summarize
from hfpipe.errors import UsageError
from tests.bench import made


def warnings(*configurations, **more):
    return list(summarize(made.report(*configurations, **more)).warnings)


def test_rows_have_medians_and_verdicts_against_the_first():
    summary = summarize(made.usual())
    assert [row.name for row in summary.rows] == ["torch", "openvino fp16", "openvino int8", "openvino int4"]
    assert [metric.name for metric in summary.headline] == ["pp512", "tg128", "batch8_tps"]
    first, _, int8, _ = summary.rows
    assert first.verdicts == {}
    assert int8.values["tg128"].median == pytest.approx(147)
    assert int8.values["tg128"].low == pytest.approx(147 * 0.99)
    assert int8.values["tg128"].high == pytest.approx(147 * 1.01)
    assert int8.values["tg128"].rounds == 5
    assert int8.verdicts["tg128"].text == "2.45x faster (2.45 to 2.45)"
    assert int8.verdicts["ttft_ms"].text == "2.45x faster (2.45 to 2.45)"
    assert int8.verdicts["peak_rss_mb"].text == "no difference resolved (1.00 to 1.00)"
    assert (int8.size_mb, int8.quality.perplexity_change, int8.error) == (135, 0.009, None)
    assert "peak_gpu_mb" not in int8.values
    assert summary.warnings == []


def test_the_headline_has_the_largest_batch():
    assert [one.name for one in summarize(made.report(batches=(1, 32, 8))).headline] == [
        "pp512",
        "tg128",
        "batch32_tps",
    ]
    assert [one.name for one in summarize(made.report(batches=(1,))).headline] == ["pp512", "tg128"]


def test_prompts_of_the_user_have_metrics_of_their_own():
    report = made.usual()
    report.arguments["prompt_tokens"] = None
    assert [one.name for one in summarize(report).headline] == ["prefill_tps", "decode_tps", "batch8_tps"]
    assert advice(report, 0.02).name is None


def test_a_summary_after_json_is_the_same(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made.usual().as_dict()))
    assert summarize(read_report(path)) == summarize(made.usual())
    assert advice(read_report(path), 0.02) == advice(made.usual(), 0.02)


def test_nothing_is_measured():
    assert summarize(made.report()).rows == []
    assert advice(made.report(), 0.02).name is None
    failed = made.report(made.configuration("a", error="no"), made.configuration("b", error="no"))
    assert [row.error for row in summarize(failed).rows] == ["no", "no"]
    assert summarize(failed).warnings == []
    assert advice(failed, 0.02).text == "Nothing was measured to the end, so there is no advice."


def test_a_quiet_machine_has_no_warnings():
    assert warnings(made.configuration("a", 60), made.configuration("b", 90)) == []


def test_a_busy_machine():
    quiet, busy = made.configuration("a", 60), made.configuration("b", 60, others=0.121, rounds=5)
    assert warnings(quiet, busy) == [
        "The machine was busy: other processes used 7% of its processors (median; up to 12%)."
    ]
    assert warnings(quiet, made.configuration("b", 60, others=None)) == []
    assert warnings(quiet, made.configuration("c", 60, rounds=8), busy) == [
        "The machine was busy while b ran: other processes used 12% of its processors (median; up to 12%)."
    ]


def test_a_frequency_that_changes():
    rows = [made.configuration("a", 60, frequency=3_000.0), made.configuration("b", 60, frequency=2_600.0)]
    assert warnings(*rows) == ["The processors' frequency changed: 2,600 to 3,000 MHz."]
    assert warnings(made.configuration("a", 60, frequency=None), rows[0]) == []
    assert warnings(made.configuration("a", 60, frequency=2_800.0), rows[0]) == []


def test_few_rounds():
    a, b, failed = (
        made.configuration("a", 60, rounds=2),
        made.configuration("b", 60),
        made.configuration("c", error="x"),
    )
    assert warnings(a, b, failed) == ["Fewer than 3 rounds for a: no difference can be resolved."]
    c = made.configuration("c", 60, rounds=1)
    assert warnings(a, c) == ["Fewer than 3 rounds for every configuration: no difference can be resolved."]


def test_samples_that_spread():
    row = made.configuration("a", 60, wobble=40)
    assert warnings(row) == ["The samples of a spread: pp512 by 16%, tg128 by 16% from the slowest to the fastest."]


def test_an_interrupted_report_keeps_its_own_warnings():
    found = warnings(made.configuration("a", 60), warnings=["No GPU."], interrupted=True)
    assert found == ["No GPU.", "The run was interrupted: this is what had been measured."]


def test_a_reference_that_failed():
    report = made.report(made.configuration("a", error="no"), made.configuration("b", 60), made.configuration("c", 70))
    summary = summarize(report)
    assert [row.verdicts for row in summary.rows] == [{}, {}, {}]
    assert summary.warnings == ["a has no samples, so nothing is compared with it."]


def test_advice_is_the_fastest_within_the_loss():
    found = advice(made.usual(), 0.02)
    assert found.name == "openvino int8"
    assert found.text == (
        "openvino int8 is the fastest that loses at most 2%: tg128 147 tokens/s, perplexity +0.9%. "
        "Faster, but losing more: openvino int4 (+5.2%)."
    )
    assert found.commands == ["hfpipe run '/cache/openvino int8'"]
    assert [shlex.split(one)[:2] for one in advice(made.usual(), 0.06).commands] == [
        ["hfpipe", "export"],
        ["hfpipe", "run"],
    ]
    assert advice(made.usual(), 0.0).name == "torch"


def test_advice_is_honest_about_what_is_as_fast():
    rows = [
        made.configuration("torch", 60, 0.0, 269),
        made.configuration("int4", 151, 0.015, 90),
        made.configuration("int8", 150, 0.009, 135, wobble=5),
        made.configuration("small", 150, 0.015, 80, wobble=5),
    ]
    text = advice(made.report(*rows), 0.02).text
    assert "int4 is the fastest that loses at most 2%" in text
    assert "No difference resolved to int8 (loses less), small (smaller)." in text
    assert "torch" not in text


def test_advice_names_some_of_many_that_are_as_fast():
    rows = [made.configuration(f"c{index}", 100 + index / 100, 0.0, 100, wobble=3) for index in range(12)]
    assert advice(made.report(*rows), 0.02).text.endswith("No difference resolved to c10, c9, c8, 8 more.")


def test_one_round_resolves_nothing():
    rows = [made.configuration("a", 60, 0.0, rounds=1), made.configuration("b", 90, 0.0, rounds=1)]
    assert advice(made.report(*rows), 0.02).text.endswith("No difference resolved to a.")


def test_advice_without_quality():
    found = advice(made.report(made.configuration("a", 60), made.configuration("b", 90)), 0.02)
    assert found.name == "b"
    assert found.text == "b is the fastest: tg128 90.0 tokens/s. Quality was not measured."


def test_an_unknown_quality_is_none_that_is_good_enough():
    """Of the first row neither."""
    rows = [
        made.configuration("a", 60),
        made.configuration("b", 50, 0.0),
        made.configuration("c", 90, 0.05),
        made.configuration("d", 40),
    ]
    found = advice(made.report(*rows), 0.02)
    assert found.name == "b"
    assert found.text == (
        "b is the fastest that loses at most 2%: tg128 50.0 tokens/s, perplexity 0.0%. "
        "Faster, but losing more: c (+5.0%). Faster, quality unknown: a."
    )
    found = advice(made.report(rows[0], rows[2], rows[3]), 0.02)
    assert found.name is None
    assert found.text == ("No configuration is known to lose at most 2%. c loses least: +5.0%. Quality unknown: a, d.")


def test_a_quality_of_what_failed_is_none():
    rows = [made.configuration("a", 60), made.configuration("b", 90, 0.0, error="Ended by a signal.")]
    found = advice(made.report(*rows), 0.02)
    assert found.text == "a is the fastest: tg128 60.0 tokens/s. Quality was not measured."


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 90, 0.05), made.configuration("c", 50)]
    sentence = "Losses are against each model's own source."
    rows[1].quality = made.quality(0.05, reference_perplexity=14.2000001)
    assert sentence not in advice(made.report(*rows), 0.02).text
    rows[1].quality = made.quality(0.05, reference_perplexity=9.1)
    assert advice(made.report(*rows), 0.02).text.endswith(f"Faster, but losing more: b (+5.0%). {sentence}")
    assert advice(made.report(*rows), -0.1).text.endswith(f"a loses least: 0.0%. Quality unknown: c. {sentence}")


def test_no_advice_without_a_decode_speed():
    rows = [made.configuration("a", 60, 0.0, tg128=None), made.configuration("b", 60, error="no")]
    found = advice(made.report(*rows), 0.02)
    assert (found.name, found.text) == (None, "No decode speed was measured, so there is no advice.")
    rows.append(made.configuration("c", 60))
    assert advice(made.report(*rows), 0.02).name == "c"


def test_nothing_is_within_the_loss():
    rows = [made.configuration("a", 60, 0.03), made.configuration("b", 90, 0.05)]
    found = advice(made.report(*rows), 0.005)
    assert found.name is None
    assert found.text == "No configuration loses at most 0.5%. a loses least: +3.0%."


def test_what_failed_is_not_advised():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 90, 0.0, error="Ended by a signal.")]
    assert advice(made.report(*rows), 0.02).name == "a"


def test_another_one_is_the_fastest_for_the_largest_batch():
    batches = [8, 32]
    rows = [
        made.configuration("a", 60, 0.0, batches=batches, batch32_tps=900.0),
        made.configuration("b", 90, 0.0, batches=batches, batch32_tps=600.0),
        made.configuration("c", 95, 0.5, batches=batches, batch32_tps=9_000.0),
    ]
    text = advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text
    assert "For batches of 32 the fastest is a: 900 tokens/s, 1.50x faster (1.50 to 1.50)." in text
    assert "For batches" not in advice(made.report(*rows, batches=(1, 8)), 0.02).text
    rows[1] = made.configuration("b", 90, 0.0)
    assert "For batches" not in advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text


def test_a_baseline():
    old = made.report(made.configuration("a", 60), made.configuration("b", 60), made.configuration("gone", 60))
    now = made.report(made.configuration("a", 60), made.configuration("b", 50), made.configuration("new", 60))
    found = compare(now, old, 0.10)
    assert {one.name for one in found.differences} == {"a", "b"}
    assert len(found.differences) == 20
    by_metric = {one.metric.name: one.verdict for one in found.differences if one.name == "b"}
    assert by_metric["tg128"].ratio == pytest.approx(5 / 6)
    assert by_metric["tg128"].text.startswith("1.20x slower (1.1")
    assert {one.metric.name for one in found.differences if one.name == "b" and one.verdict.slower} > {"itl_ms_p99"}
    assert [(one.name, one.metric.name) for one in found.too_slow] == [
        ("b", name) for name in ("ttft_ms", "tpot_ms", "pp512", "tg128")
    ]
    assert (found.only_here, found.only_there, found.lost, found.changed_host) == (["new"], ["gone"], ["gone"], [])
    assert not found.passed


def test_a_baseline_of_another_model_has_nothing_in_common():
    old = made.report(made.configuration("torch", 60, model="org/one"))
    now = made.report(made.configuration("torch", 50, model="org/two"))
    found = compare(now, old)
    assert (found.differences, found.only_here, found.only_there) == ([], ["torch"], ["torch"])
    assert found.passed
    assert not compare(now, old, 0.10).passed


def test_the_same_model_has_another_name_beside_others():
    old = made.report(
        made.configuration("m torch", 60, model="org/m"),
        made.configuration("other torch", 60, model="org/other"),
        made.configuration("m torch (2)", 90, model="org/m"),
    )
    now = made.report(
        made.configuration("torch", 50, model="/models/m/"), made.configuration("torch (2)", 90, model="/models/m/")
    )
    found = compare(now, old, 0.10)
    assert {one.name for one in found.too_slow} == {"torch"}
    assert {one.name for one in found.differences} == {"torch", "torch (2)"}
    assert (found.only_here, found.only_there, found.lost) == ([], ["other torch"], ["other torch"])


def test_an_engine_and_a_format_are_compared_with_themselves():
    old, now = (made.report(*(made.configuration(name, 60, model="m") for name in "ab")) for _ in range(2))
    old.configurations[0].backend = now.configurations[1].backend = "torch"
    old.configurations[1].weight_format = now.configurations[0].weight_format = "int4"
    found = compare(now, old)
    assert {one.name for one in found.differences} == {"a", "b"}
    now.configurations[0].weight_format = None
    assert {one.name for one in compare(now, old).differences} == {"b"}


def test_what_is_lost():
    there = [
        made.configuration("fine", 60),
        made.configuration("fails", 60),
        made.configuration("empty", 60),
        made.configuration("gone", 60),
        made.configuration("failed", error="no"),
        made.configuration("failed and gone", 60, error="no"),
    ]
    here = [
        made.configuration("fine", 60),
        made.configuration("fails now", 60, error="no", model="fails"),
        made.configuration("empty"),
        made.configuration("failed", error="no"),
        made.configuration("failed and new", error="no"),
    ]
    found = compare(made.report(*here), made.report(*there), 0.10)
    assert found.lost == ["fails now", "empty", "gone"]
    assert found.only_there == ["gone", "failed and gone"]
    assert (found.too_slow, found.passed) == ([], False)
    assert compare(made.report(*here), made.report(*there)).passed
    found = compare(made.report(*there), made.report(*here), 0.10)
    assert (found.lost, found.passed) == ([], True)


@pytest.mark.parametrize(("fail_slower", "failed"), [(0.10, True), (0.15, True), (0.19, False), (None, False)])
def test_slower_than_is_allowed(fail_slower, failed):
    old, now = made.report(made.configuration("a", 60)), made.report(made.configuration("a", 50))
    found = compare(now, old, fail_slower)
    assert bool(found.too_slow) == failed
    assert found.passed != failed
    assert not compare(old, now, fail_slower).too_slow


def test_noise_fails_no_baseline():
    old = made.report(made.configuration("a", 60, wobble=100))
    now = made.report(made.configuration("a", 54, wobble=-100))
    assert not compare(now, old, 0.05).too_slow


def test_more_memory_is_not_slower():
    old = made.report(made.configuration("a", 60))
    now = made.report(made.configuration("a", 60, peak_rss_mb=2_048.0))
    found = compare(now, old, 0.10)
    assert not found.too_slow
    assert {one.metric.name: one.verdict.text for one in found.differences}["peak_rss_mb"] == (
        "4.00x larger (4.00 to 4.00)"
    )


def test_other_batches_and_hosts_are_compared_in_what_is_common():
    old = made.report(made.configuration("a", 60, batches=[8]), batches=(1, 8))
    now = made.report(made.configuration("a", 60, batches=[8, 32]), batches=(1, 8, 32))
    now.host["cpu"] = "EPYC"
    found = compare(now, old)
    assert [one.metric.name for one in found.differences if one.metric.name.startswith("batch")] == ["batch8_tps"]
    assert found.changed_host == ["cpu"]


def test_versions_that_changed_have_names():
    old, now = made.usual(), made.usual()
    old.host["versions"] = {"hfpipe": "1", "torch": "2.9", "nncf": None, "openvino": "2026.1"}
    now.host["versions"] = {"hfpipe": "1", "torch": "2.10", "openvino": "2026.2"}
    assert compare(now, old).changed_host == ["versions of torch, openvino"]
    now.host["versions"] = old.host["versions"]
    assert compare(now, old).changed_host == []
    del now.host["versions"]
    assert compare(now, old).changed_host == ["versions"]


def test_other_numbers_of_tokens_cannot_be_compared():
    old = made.usual()
    old.arguments["prompt_tokens"] = 256
    with pytest.raises(UsageError, match="other numbers of tokens") as caught:
        compare(made.usual(), old)
    assert caught.value.hint == "Compare with a run with -p 256 -g 128."


def test_prompts_of_the_user_cannot_be_compared_with_random_ones():
    own, random = Workload(None, 128), Workload(512, 128, (1, 8))
    with pytest.raises(UsageError, match=r"measured with random prompts\.") as caught:
        check_comparable(own, random)
    assert caught.value.hint == "Compare with a run with -p 512 -g 128, without --prompts."
    with pytest.raises(UsageError, match=r"measured with prompts of --prompts\.") as caught:
        check_comparable(random, own)
    assert caught.value.hint == "Compare with a run with its --prompts -g 128."
    with pytest.raises(UsageError, match="other numbers of tokens") as caught:
        check_comparable(Workload(None, 64), own)
    assert caught.value.hint == "Compare with a run with its --prompts -g 128."
    check_comparable(own, own)
    check_comparable(Workload(512, 128), random)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt_tokens": "512"},
        {"prompt_tokens": 0},
        {"new_tokens": None},
        {"new_tokens": True},
        {"batches": 8},
        {"batches": "18"},
        {"batches": [1, 0.5]},
        {"batches": None},
    ],
)
def test_arguments_of_no_report(tmp_path, changed):
    data = json.loads(json.dumps(made.usual().as_dict()))
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**data, "arguments": {**data["arguments"], **changed}}))
    with pytest.raises(UsageError, match=r"report\.json is no report of hfpipe bench: "):
        read_report(path)


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens", "batches"])
def test_arguments_that_a_report_lacks(tmp_path, name):
    data = json.loads(json.dumps(made.usual().as_dict()))
    del data["arguments"][name]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"is no report of hfpipe bench: it has no {name}\."):
        read_report(path)


@pytest.mark.parametrize(
    "changed", [{"arguments": []}, {"arguments": None}, {"host": []}, {"configurations": 1}, {"configurations": ["a"]}]
)
def test_parts_of_no_report(tmp_path, changed):
    data = json.loads(json.dumps(made.usual().as_dict()))
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**data, **changed}))
    with pytest.raises(UsageError, match="is no report of hfpipe bench: "):
        read_report(path)


def test_a_row_without_a_model_is_of_no_report(tmp_path):
    data = json.loads(json.dumps(made.usual().as_dict()))
    data["configurations"][0]["model"] = None
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="have to be texts"):
        read_report(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.012"),
        (0.99951, "1.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (0, "0.000"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.009, "+0.9%"), (-0.012, "-1.2%"), (-0.0001, "0.0%"), (0, "0.0%"), (12_345.6, "+1e+06%")]
)
def test_changes(value, text):
    assert change(value) == text


def test_shares():
    assert (share(0.02), share(0.005)) == ("2%", "0.5%")
