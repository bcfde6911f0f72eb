"""What a part of the page may hold, and numbers as text.

In: numbers as JSON has them: maybe absent, null, or the words 'nan' and 'inf'.
Out: texts; a dash for what is no number.
Left out: what is shown (`chain`, `sections`, `appendix`), the look (`page.html.jinja`).
"""

import dataclasses
import math
from typing import Any

UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # what odd contents of files cause


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text already; the first `names` columns are words, the others numbers."""

    head: list[str]
    rows: list[list[str]]
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt, and what was said to it: by whom, the text, its scores by name."""

    prompt: str
    begun: str  # the beginning of every answer, that the prompt gave
    answers: list[tuple[str, str, list[tuple[str, str]]]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A heading, a sentence on how to read it, and what there is of plots, a table and texts."""

    title: str
    note: str = ''
    plots: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # caption, SVG
    table: Table | None = None
    samples: list[Sample] = dataclasses.field(default_factory=list)
    quotes: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # what it is an example of, text
    footnote: str = ''
    absent: str = ''  # why there is nothing


def finite(value: Any) -> float | None:
    """A number, or None for what is absent, null, no number or not finite."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def decimal(value: Any) -> str:
    """Three decimals below 10, fewer above, so that columns line up."""
    value = finite(value)
    if value is None:
        return '–'
    decimals = 3 if abs(value) < 9.9995 else 2 if abs(value) < 99.995 else 0
    return f'{value:,.{decimals}f}'.replace('-', '−')


def percent(value: Any, decimals: int = 1) -> str:
    value = finite(value)
    return '–' if value is None else f'{100 * value:.{decimals}f}\u00a0%'


def number(value: Any) -> str:
    """A count."""
    value = finite(value)
    return '–' if value is None else f'{value:,.0f}'


def duration(seconds: Any) -> str:
    seconds = finite(seconds)
    if seconds is None:
        return '–'
    if seconds < 9.95:
        return f'{seconds:.1f} s'
    if seconds < 99.5:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.1f} min' if seconds < 5970 else f'{seconds / 3600:.1f} h'
