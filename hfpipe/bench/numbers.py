"""Numbers as a person reads them."""

from __future__ import annotations


def number(value: float) -> str:
    """Three digits, or all of those before the point: 0.123, 4.56, 78.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def change(value: float) -> str:
    """A share with its sign: +0.9%, +234%, and 0.0% for what rounds to that."""
    if abs(value) >= 100:
        return f"{100 * value:+.1g}%"
    text = f"{value:+,.0%}" if abs(value) >= 0.9995 else f"{value:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def share(value: float) -> str:
    """A share as it was given: 2%, 0.5%."""
    return f"{100 * value:g}%"
