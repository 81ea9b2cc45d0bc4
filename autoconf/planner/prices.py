"""Read hourly prices of GPU types from a mapping or a YAML file, and match them to the types of a version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import load_documents, read_text
from autoconf.jobs.values import name, positive_number
from autoconf.planner.known_names import gpu_names
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

DEFAULT = Path(__file__).with_name("prices.yaml")
PRICE = "price_per_hour"

Prices = Mapping[str, float]


def read_prices(
    source: Mapping[str, Any] | str | os.PathLike[str] | None = None, provider: str | None = None
) -> Prices:
    """Read prices per GPU and hour.

    Args:
        source: GPU types with their prices, each a number > 0, in any currency; or the path of a YAML file with the
            same content, in which a price may also be a mapping with ``price_per_hour``; by default ``prices.yaml``.
        provider: a provider in ``prices.yaml``, whose prices alone are used; in any case. Excludes ``source``.

    Raises:
        ValueError: a name or a price is invalid, or there is no such provider; the message names the type and, for a
            file, the line.

    >>> read_prices({"H100": "2.5"})
    {'H100': 2.5}
    >>> read_prices()["NVIDIA-H100-80GB-HBM3"]
    2.69
    >>> read_prices(provider="lambda")["NVIDIA-H100-80GB-HBM3"]
    3.99
    """
    if provider is not None:
        if source is not None:
            raise BadInput("prices and a provider exclude each other: give one of them")
        return _of_provider(provider)
    if source is None:
        return _default()
    if not isinstance(source, Mapping):
        path = os.fspath(source)
        return _parsed(read_text(path), path)
    if not source:
        raise ValueError("prices: must have at least one GPU type")
    return {name("prices", gpu): positive_number(f"prices, {gpu}", price) for gpu, price in source.items()}


@lru_cache(maxsize=1)
def _default() -> Prices:
    return _parsed(DEFAULT.read_text(encoding="utf-8"), str(DEFAULT))


@lru_cache(maxsize=1)
def _by_provider() -> dict[str, dict[str, float]]:
    """The prices of the package by provider and GPU type."""
    found: dict[str, dict[str, float]] = {}
    for gpu, entry in load_documents(DEFAULT.read_text(encoding="utf-8"), str(DEFAULT))[0].value.items():
        for provider, one in {entry["provider"]: entry, **entry.get("providers", {})}.items():
            found.setdefault(provider, {})[gpu] = one[PRICE]
    return found


def _of_provider(provider: str) -> Prices:
    known = _by_provider()
    for name_of, prices in known.items():
        if name_of.lower() == provider.strip().lower():
            return prices
    raise BadInput(f"provider {provider!r} has no prices here; there are prices of {', '.join(sorted(known))}")


def _parsed(text: str, path: str) -> Prices:
    documents = load_documents(text, path)
    if len(documents) != 1 or not isinstance(documents[0].value, dict) or not documents[0].value:
        raise BadInput(f"{path}:1: must have lines such as 'H100: 2.5', a GPU type and its price per hour")
    (document,) = documents
    prices: dict[str, float] = {}
    for gpu, given in document.value.items():
        price = given.get(PRICE) if isinstance(given, dict) else given
        try:
            prices[name("GPU type", gpu)] = positive_number(f"{gpu}: {PRICE}", price)
        except ValueError as error:
            raise BadInput(f"{path}:{document.line(gpu) or 1}: {error}") from None
    return prices


def of_domain(prices: Prices, predictor: Predictor) -> dict[str, float]:
    """Match prices to the GPU types of a version.

    Args:
        prices: prices by GPU type, in any spelling; types that only other released versions have are skipped.
        predictor: the version.

    Raises:
        ValueError: no released version has a type, or a type has two prices; the message names it.
    """
    names, version = gpu_names(predictor.domain), predictor.card.version
    others = [gpu_names(registry.card(released).domain) for released in registry.RELEASED]
    found: dict[str, float] = {}
    for written, price in prices.items():
        gpu, elsewhere = names.find(written), {other for names_of in others if (other := names_of.find(written))}
        if gpu is None and not elsewhere:
            raise BadInput(f"prices: {names.refusal(written, version).removeprefix('gpu_model ')}")
        if gpu is None or (elsewhere and gpu not in elsewhere):  # a type that this version does not have
            continue
        if gpu in found:
            raise BadInput(f"prices: {written!r} is {gpu}, which has another price")
        found[gpu] = price
    return found
