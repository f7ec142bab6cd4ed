"""Made reports, to draw."""

from pathlib import Path

import numpy as np

from hfpipe.bench.report import Configuration, Quality, Report, Sample

ROOT = Path(__file__).parents[2]
HOST = {
    "processor": "Intel(R) Xeon(R) Platinum 8481C",
    "cores": 2,
    "load_average": None,
    "versions": {"torch": "2.9.1", "openvino": "2026.2"},
}


def quality(change, error=0.001, reference=12.0):
    return Quality(1000, reference * (1 + change), reference, change, error, 0.97, 0.004, 8, 5, 64, 41.5)


def samples(speed, *, rounds=5, itl=True, seed=0, batches=(8,)):
    """Rounds that scatter by some percent about a speed in tokens/s."""
    chance = np.random.default_rng(seed)
    made = []
    for number in range(rounds):
        factor = 1 + 0.015 * chance.standard_normal()
        times = 1000 / speed / factor * chance.lognormal(0, 0.06, 127)
        times[chance.random(127) < 0.02] *= 3
        values = {"tg128": speed * factor, "pp512": 9 * speed * factor, "ttft_ms": 512 / (9 * speed) * 1000}
        values |= {"tpot_ms": float(times.mean()), "peak_rss_mb": 900.0, "load_s": 1.2}
        values |= {f"itl_ms_p{percent}": float(np.percentile(times, percent)) for percent in (50, 95, 99)}
        made.append(Sample("single", number, values, tuple(times) if itl else ()))
        made += [Sample(f"batch{size}", number, {f"batch{size}_tps": 5 * speed * factor}) for size in batches]
    return made


def row(name, speed=None, size=None, change=None, *, backend="openvino", seed=0, quality_error=0.001, **more):
    return Configuration(
        name=name,
        model=more.pop("model", "SmolLM2-135M-Instruct"),
        backend=backend,
        weight_format=None,
        prepare=(),
        command=("hfpipe", "run", name),
        size_mb=size,
        samples=samples(speed, seed=seed, **{k: more.pop(k) for k in ("itl", "rounds") if k in more}) if speed else [],
        quality=None if change is None else quality(change, quality_error),
        **more,
    )


def report(*rows, **more):
    arguments = {"prompt_tokens": 512, "new_tokens": 128, "batches": [1, 8], "repeats": 5}
    return Report(arguments=arguments, host=HOST, created="2026-11-22T17:00:00", configurations=[*rows], **more)


def smollm2(loss=0.053, **more):
    """As it was measured, about."""
    quality_of = (lambda change: None) if more.pop("without_quality", False) else (lambda change: change)
    return report(
        row("torch bf16", 34, 269, quality_of(0.0), backend="torch", seed=1, quality_error=None),
        row("openvino fp16", 70, 269, quality_of(-0.0002), seed=2, quality_error=0.0003),
        row("openvino int8", 83, 135, quality_of(0.009), seed=3),
        row("openvino int4", 95, 104, quality_of(loss), seed=4, quality_error=0.004),
        **more,
    )


def two_models():
    """Each against its own source."""
    rows = [row(f"{model} int8", speed, 135, 0.009, model=model) for model, speed in (("small", 83), ("large", 30))]
    rows[1].quality = quality(0.004, reference=8.0)
    return report(*rows)


def crowd(count=12):
    """Close to each other."""
    chance = np.random.default_rng(5)
    return report(
        *(
            row(
                f"{'torch' if n % 3 == 0 else 'openvino'} variant-{n}",
                80 + 6 * chance.random(),
                100 + 20 * n,
                0.02 * chance.random(),
                backend="torch" if n % 3 == 0 else "openvino",
                seed=n,
            )
            for n in range(count)
        )
    )


def alone():
    return report(row("openvino int8", 83, 135, 0.009))


def long_names():
    name = "some-organisation/A-Very-Long-Model-Name-With-Many-Parts-1.5B-Instruct-v0.3-final openvino int4 group 128"
    return report(
        row(name, 40, 900, 0.0, backend="torch", model=name),
        row(name + " asymmetric", 83, 500, 0.02, seed=2, model=name),
        row("the/" + "x" * 120, 84, 480, 0.021, seed=3, model=name),
    )


def chinese():
    model = "通义千问二点五-零点五B-指令"
    return report(
        row(f"{model} torch 半精度", 40, 990, 0.0, backend="torch", model=model),
        row(f"{model} openvino 八位", 83, 500, 0.012, seed=2, model=model),
        row(f"{model} openvino 四位", 101, 300, 0.04, seed=3, model=model),
    )


def gaps():
    """One failed, one has no samples, one no quality, one no times between tokens."""
    return report(
        row("torch fp32", 20, 540, 0.0, backend="torch", itl=False),
        row("openvino int8", 83, 135, 0.009),
        row("openvino int4", 95, 104, None),
        row("openvino fp16", None, 269, -0.0001),
        row("optimum fp32", backend="optimum", error="The model has no encoder.\nTraceback: …"),
        interrupted=True,
    )


def extremes():
    """A perplexity beyond all bounds, one below the reference's; hours and microseconds; no size; one round."""
    return report(
        row("torch huge", 0.0004, 1_400_000, 0.0, backend="torch", rounds=1),
        row("echo broken", 90_000, 0.2, 3e9, backend="echo", seed=2),
        row("optimum better", 90, None, -0.08, backend="optimum", seed=3),
    )
