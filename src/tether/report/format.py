"""Numbers as text: one rule for the page and the terminal, so that the two never disagree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MISSING",
    "as_number",
    "counted",
    "format_gain",
    "format_interval",
    "format_p",
    "format_quantity",
    "n_decimals",
]

MISSING = "—"
_MINUS = "−"
_MAX_DECIMALS = 8
#: What needs more is written in powers of ten beside larger numbers.
_FEW_DECIMALS = 5


def as_number(value: object) -> float | None:
    """Return a finite float, or None for anything that is not one (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def counted(n: int, noun: str) -> str:
    """Number and noun.

    Examples
    --------
    >>> counted(1, "fold"), counted(1200, "fold")
    ('1 fold', '1,200 folds')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def n_decimals(values: Iterable[float | None], *, significant: int = 3) -> int:
    """Decimals that give the smallest of a column's numbers `significant` digits.

    A column shares its decimals, so that its numbers can be compared by eye. The median gets one
    digit more than that at most: what is small beside it (rounding, where there is no error) does
    not stretch the column, and what is huge (a run that diverged) takes no digits from the others.

    Parameters
    ----------
    values : iterable of float or None
        The column; None, NaN and zero are passed over.
    significant : int
        Digits wanted for the smallest magnitude; the median has at most one more.

    Returns
    -------
    int
        Between 0 and 8.

    Examples
    --------
    >>> n_decimals([0.00338, 0.0202]), n_decimals([0.00007, 0.284]), n_decimals([0.5, 0.7, 5e6])
    (5, 4, 3)
    """
    sizes = sorted(abs(value) for value in values if value and math.isfinite(value))
    if not sizes:
        return significant - 1
    wanted = significant - 1 - math.floor(math.log10(sizes[0]))
    enough = significant - math.floor(math.log10(sizes[len(sizes) // 2]))
    # Of two numbers neither is the usual one: the smaller loses one digit, unless it is rounding.
    least = wanted - 1 if wanted <= _FEW_DECIMALS else 0
    return min(max(min(wanted, enough), least, 0), _MAX_DECIMALS)


def format_quantity(value: float | None, decimals: int) -> str:
    """Write fixed decimals with thousands separated, or an em dash.

    Examples
    --------
    >>> format_quantity(1234.5, 1), format_quantity(-0.25, 2), format_quantity(None, 2)
    ('1,234.5', '−0.25', '—')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    sign = _MINUS if value < 0 else ""
    if value != 0 and abs(value) < 0.5 * 10**-decimals:
        return f"{sign}{abs(value):.2e}"
    return f"{sign}{abs(value):,.{decimals}f}"


def format_interval(low: float | None, high: float | None, decimals: int) -> str:
    """`[low, high]`, or nothing where there is no interval.

    Examples
    --------
    >>> format_interval(0.1, 0.25, 2)
    '[0.10, 0.25]'
    """
    if low is None or high is None:
        return ""
    return f"[{format_quantity(low, decimals)}, {format_quantity(high, decimals)}]"


def format_gain(percent: float | None) -> str:
    """Write a signed percentage without its sign; positive means a smaller error.

    Examples
    --------
    >>> format_gain(12.34), format_gain(-0.4), format_gain(0.0)
    ('+12.3', '−0.4', '0.0')
    """
    if percent is None:
        return MISSING
    text = f"{abs(percent):.1f}"
    if float(text) == 0:
        return text
    return ("+" if percent > 0 else _MINUS) + text


def format_p(p_value: float | None) -> str:
    """Write a p value, with a floor.

    Examples
    --------
    >>> format_p(0.0123), format_p(1e-9), format_p(None)
    ('p = 0.012', 'p < 0.001', '')
    """
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
