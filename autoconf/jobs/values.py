"""Read whole numbers, names and choices from user input; raise ``ValueError`` that names the field."""

from __future__ import annotations

import numbers
from decimal import Decimal
from fractions import Fraction
from typing import Any

from autoconf.jobs.names import key

_LONGEST_NUMBER = 40  # characters; longer texts are not meaningful numbers
# No field is meaningful beyond this, and up to it 64-bit arithmetic is exact.
LARGEST_NUMBER = 2**53
_LONGEST_NAME = 300
_MOST_GIB = 1024  # more than any GPU has
MOST_HOST_GIB = 65_536  # more than the host of any node has


def is_empty(value: Any) -> bool:
    """Whether a value counts as not given: ``None``, NaN, any other missing value of pandas, or blank text.

    >>> is_empty(None), is_empty(" "), is_empty(float("nan")), is_empty(0)
    (True, True, True, False)
    """
    if value is None or isinstance(value, str):
        return not (value and value.strip())
    if isinstance(value, Decimal):
        return value.is_nan()  # comparing a signaling NaN raises
    if isinstance(value, numbers.Number):
        return bool(value != value)
    import pandas as pd  # imported late: ado loads this module into each of its processes

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def flag(field: str, value: Any) -> bool:
    """Read a boolean, 1 or 0, or text such as yes or false.

    Args:
        field: name for the error message.
        value: the value as the user gave it.

    Raises:
        ValueError: the value is anything else.

    >>> flag("even_layouts", True), flag("even_layouts", "no"), flag("even_layouts", 1.0)
    (True, False, True)
    """
    if isinstance(value, str):
        found = _FLAGS.get(value.strip().casefold())
    else:
        numeric = isinstance(value, numbers.Number) or type(value).__name__ in ("bool", "bool_")
        found = bool(value) if numeric and value in (0, 1) else None
    if found is None:
        raise ValueError(f"{field}: must be true or false, got {_quoted(value)}")
    return found


def whole_number(field: str, value: Any) -> int:
    """Read a whole number >= 1.

    Args:
        field: name for the error message.
        value: an int, a float, a ``Decimal``, a ``Fraction``, a numpy scalar, or text of a number. The value is exact:
            ``Fraction(10**30 + 1, 10**30)`` is not 1.

    Raises:
        ValueError: the value is anything else: zero, negative, fractional, NaN, infinite, a boolean, bytes, ``None``
            or a number beyond 2**53.

    >>> whole_number("batch_size", "16"), whole_number("batch_size", 16.0)
    (16, 16)
    >>> whole_number("batch_size", 0)
    Traceback (most recent call last):
    ValueError: batch_size: must be a whole number >= 1, got 0
    """
    number = _number(value)
    huge = number is not None and number > LARGEST_NUMBER
    if number is None or huge or number < 1 or number != int(number):
        limit = f"<= {LARGEST_NUMBER}" if huge else ">= 1"
        raise ValueError(f"{field}: must be a whole number {limit}, got {_quoted(value)}")
    return int(number)


def positive_number(field: str, value: Any) -> float:
    """Read a number > 0, of any type that ``whole_number`` accepts.

    Raises:
        ValueError: the value is anything else.

    >>> positive_number("price", "2.5")
    2.5
    >>> positive_number("price", -1)
    Traceback (most recent call last):
    ValueError: price: must be a number > 0, got -1
    """
    number = _number(value)
    if number is None or not 0 < number <= LARGEST_NUMBER:
        raise ValueError(f"{field}: must be a number > 0, got {_quoted(value)}")
    return float(number)


def share(field: str, value: Any) -> float:
    """Read a number from 0 to less than 1, of any type that ``whole_number`` accepts.

    Raises:
        ValueError: the value is anything else.

    >>> share("lora_dropout", "0.05")
    0.05
    >>> share("lora_dropout", 5)
    Traceback (most recent call last):
    ValueError: lora_dropout: must be a number >= 0 and < 1, got 5
    """
    number = _number(value)
    if number is None or not 0 <= number < 1:
        raise ValueError(f"{field}: must be a number >= 0 and < 1, got {_quoted(value)}")
    return float(number)


def gibibytes(field: str, value: Any, most: int = _MOST_GIB) -> float:
    """Read memory in GiB.

    Args:
        field: name for the error message.
        value: a number from 1 to ``most``, of any type that ``whole_number`` accepts.
        most: the largest memory.

    Raises:
        ValueError: the value is anything else; for a number that is likely MiB or bytes, the message says so.

    >>> gibibytes("gpu_memory_gib", "23.5")
    23.5
    >>> gibibytes("gpu_memory_gib", 24564)
    Traceback (most recent call last):
    ValueError: gpu_memory_gib: must be a number of GiB from 1 to 1024, got 24564 (24564 MiB are 23.99 GiB)
    """
    number = _number(value)
    if number is not None and 1 <= number <= most:
        return float(number)
    hint = ""
    if number is not None and 0 < number <= LARGEST_NUMBER:
        for unit, of_one in (("MiB", 2**10), ("bytes", 2**30)):
            if 1 <= (gib := float(number) / of_one) <= most:
                hint = hint or f" ({int(number)} {unit} are {gib:.2f} GiB)"
    raise ValueError(f"{field}: must be a number of GiB from 1 to {most}, got {_quoted(value)}{hint}")


def _number(value: Any) -> int | Fraction | Decimal | None:
    """The exact number of a value; ``None`` if it is not a finite number."""
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and value.isascii() and "_" not in value:
        try:
            value = Decimal(value)
        except ArithmeticError:
            return None
    match value:
        case bool():
            return None
        case Decimal():  # not converted to a Fraction, in which 1e999999999 would have that many digits
            return value if value.is_finite() else None
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            try:
                return Fraction(*value.as_integer_ratio())  # type: ignore[attr-defined]
            except (AttributeError, ValueError, OverflowError):  # a number of another library, NaN, infinite
                return None
    return None


def name(field: str, value: Any) -> str:
    """Read a name: non-empty text, stripped of surrounding white space.

    Whether a version knows the name is checked later.

    Raises:
        ValueError: the value is not text, is empty, is longer than 300 characters or cannot be written in UTF-8.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME:
        raise ValueError(
            f"{field}: must be a non-empty text of at most {_LONGEST_NAME} characters, got {_quoted(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # the bytes of an option were not UTF-8, so no output could hold the name
        raise ValueError(f"{field}: must be text in UTF-8, got {_quoted(value)}") from None
    return value.strip()


def choice(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Read one of a few names, regardless of case and separators.

    Raises:
        ValueError: it is none of them; the message lists them.

    >>> choice("optim", "AdamW-torch", ("adamw_torch", "sgd"))
    'adamw_torch'
    >>> choice("optim", "adam2", ("adamw_torch", "sgd"))
    Traceback (most recent call last):
    ValueError: optim: must be adamw_torch or sgd, got 'adam2'
    """
    # YAML reads an unquoted "no" as False, and ado converts that to 0.
    text = "no" if isinstance(value, bool | int | float) and value == 0 else value
    if isinstance(text, str) and len(text) <= _LONGEST_NAME:
        for known in allowed:
            if key(text) == key(known):
                return known
    *most, last = allowed
    raise ValueError(f"{field}: must be {', '.join(most)} or {last}, got {_quoted(value)}")


def _quoted(value: Any) -> str:
    """The ASCII representation of a value, shortened so that a message stays on one line."""
    try:
        text = ascii(value)
    except Exception as error:
        text = f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."
