"""Made reports, with samples whose medians are known, to compare and to draw."""

from hfpipe.bench.report import Configuration, Quality, Report, Sample

# Around a median, by round: the same for every configuration, so that ratios are known exactly.
NOISE = (1.0, 0.99, 1.01, 1.004, 0.996)
# Around a ratio, by round.
WOBBLE = (0.002, 0.0, -0.002, 0.001, -0.001)
RATES = ("pp512", "tg128")
HOST = {
    "processor": "Intel(R) Xeon(R) Platinum 8481C",
    "cores": 2,
    "load_average": None,
    "versions": {"torch": "2.9.1", "openvino": "2026.2"},
}


def quality(loss=0.009, error=0.002, **changed):
    values = {
        "tokens": 1000,
        "perplexity": 14.2 * (1 + loss),
        "reference_perplexity": 14.2,
        "perplexity_change": loss,
        "perplexity_change_error": error,
        "same_top": 0.971,
        "mean_kl": 0.0123,
        "answers": 8,
        "same_answers": 5,
        "answer_tokens": 64,
        "first_divergence": 41.5,
    }
    return Quality(**{**values, **changed})


def values(speed, batches=()):
    """By metric, of a configuration that decodes `speed` tokens a second."""
    made = {
        "load_s": 0.5,
        "ttft_ms": 512_000 / (17 * speed),
        "tpot_ms": 1_000 / speed,
        "itl_ms_p50": 990 / speed,
        "itl_ms_p95": 1_200 / speed,
        "itl_ms_p99": 1_500 / speed,
        "pp512": 17.0 * speed,
        "tg128": float(speed),
        "peak_rss_mb": 512.0,
    }
    return made | {f"batch{size}_tps": speed * size * 0.7 for size in batches}


def samples(speed, rounds=5, batches=(), others=0.01, frequency=2_400.0, wobble=0, itl=True, **changed):
    """`wobble` times WOBBLE moves this configuration alone."""
    found = []
    for number in range(rounds):
        factor = NOISE[number % 5] * (1 + wobble * WOBBLE[number % 5])
        made = values(speed, batches) | changed
        noisy = {
            name: value * factor if name in RATES or name.endswith("_tps") else value / factor
            for name, value in made.items()
            if value is not None
        }
        noisy |= {name: made[name] for name in ("peak_rss_mb", "peak_gpu_mb") if made.get(name)}
        single = {name: value for name, value in noisy.items() if not name.startswith("batch")}
        times = (990 / speed, 995 / speed, 1_500 / speed) if itl else ()
        found.append(Sample("start", number, {"cold_ttft_s": 44.0 / speed / factor}, (), others, frequency))
        found.append(Sample("single", number, single, times, others, frequency))
        for size in batches:
            name = f"batch{size}_tps"
            found.append(Sample(f"batch{size}", number, {name: noisy[name]}, (), others, frequency))
    return found


def configuration(
    name, speed=None, loss=None, size_mb=None, prepare=(), error=None, model=None, backend="openvino", **about_samples
):
    """`model` is the name where it is not given: no two are the same in another run."""
    return Configuration(
        name=name,
        model=name if model is None else model,
        backend=backend,
        weight_format="int8",
        prepare=prepare,
        command=("hfpipe", "run", f"/cache/{name}"),
        device="CPU",
        dtype="bf16",
        size_mb=size_mb,
        samples=samples(speed, **about_samples) if speed else [],
        quality=None if loss is None else quality(loss),
        error=error,
    )


def report(*configurations, batches=(1,), repeats=5, **more):
    arguments = {"prompt_tokens": 512, "new_tokens": 128, "batches": list(batches), "repeats": repeats}
    return Report(arguments, dict(HOST), "2026-11-22T17:00:00", list(configurations), **more)


def usual(batches=(1, 8), loss=0.052, **more):
    """Four of them, in the order that a user has them in."""
    several = {"batches": [size for size in batches if size > 1], **more}
    export = ("hfpipe", "export", "smollm2", "--weight-format", "int4")
    return report(
        configuration("torch", 60, 0.0, 269, **several, backend="torch"),
        configuration("openvino fp16", 90, 0.0003, 269, **several),
        configuration("openvino int8", 147, 0.009, 135, **several),
        configuration("openvino int4", 170, loss, 90, prepare=export, **several),
        batches=batches,
    )


def gaps():
    """One failed, one has no samples, one no quality, one no times between tokens."""
    return report(
        configuration("torch fp32", 20, 0.0, 540, backend="torch", itl=False),
        configuration("openvino int8", 83, 0.009, 135),
        configuration("openvino int4", 95, None, 104),
        configuration("openvino fp16", None, -0.0001, 269),
        configuration("optimum fp32", backend="optimum", error="The model has no encoder.\nTraceback: …"),
        interrupted=True,
    )


def crowd():
    """Twelve, with more columns than a terminal has room for."""
    several = {"batches": [2, 8, 32, 128]}
    rows = [
        configuration(f"openvino int{index} group {2**index}", 60 + 7 * index, index / 1000, 90 + index, **several)
        for index in range(12)
    ]
    return report(*rows, batches=(1, 2, 8, 32, 128))


def names():
    """What a terminal, a picture, Markdown and HTML could take for their own; other scripts; and long ones."""
    found = [
        "通义千问二点五零点五B指令 八位 非对称量化",
        "[bold]x[/] :smile:",
        "<b>&\"'</b></text><script>alert(1)</script>]]>",
        "a-->b $x^2$ \\frac{1}{2} &lt;",
        "a\x00b\x1b[31mc\x07d\udcffe\u202ef",
        "модель-с-очень-длинным-именем-int8",
        "the/" + "x" * 120,
    ]
    return report(*(configuration(name, 60 + 10 * index, 0.01, 100) for index, name in enumerate(found)))


def extremes():
    """Perplexities beyond all bounds, and below the reference's; hours and microseconds; no size; one round; noise."""
    return report(
        configuration("huge", 0.0004, 0.0, 1_400_000, rounds=1),
        configuration("broken", 9_000_000, 3e9, 0.2),
        configuration("better", 90, -0.08),
        configuration("wild", 1_000, 0.1, 10.0, rounds=2, wobble=300),
    )


def interrupted():
    rows = [
        configuration("a", 60, rounds=2, batches=[8], peak_gpu_mb=900.0),
        configuration("b", 70, 0.0, rounds=1, others=0.4, frequency=1_200.0),
        configuration("c", error="optimum-cli ended with 1: channel size is not divisible by 128.\nTraceback: …"),
    ]
    return report(*rows, batches=(1, 8), interrupted=True)


def empty():
    return report(configuration("openvino int8", error="It failed."))


CASES = [usual, gaps, crowd, names, extremes, interrupted, empty, report]
