"""The domains of the experiments' properties in ado: the values of released versions, and whole numbers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed
from autoconf.errors import AutoConfError
from autoconf.jobs.job import DROPOUT, FLAGS, GPU_MEMORY, HOST_LIMIT, IMAGES, NAMES, NUMBERS, choices
from autoconf.jobs.presets import SETTINGS
from autoconf.jobs.queries import ARGUMENTS, RUN_LENGTH

from ado.schema.domain import PropertyDomain, VariableTypeEnum

_VERSIONS = Path(__file__).parents[1] / "AutoGluonModels"
# ado compares the values of a space with a list of all numbers of a domain, so a domain needs an upper limit. This one
# is far beyond the domain of any version.
_LARGEST = 2**20
_LENGTHS = [10**exponent for exponent in range(10)]  # any whole number is valid
_MEMORY = [8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192]  # usual sizes; any number from 1 to 1024 is valid
_IMAGE_TOKENS = [2**exponent for exponent in range(6, 15)]  # any whole number is valid
_HOST_MEMORY = [2**exponent for exponent in range(6, 13)]  # usual sizes; any number from 1 to 65536 is valid
_DROPOUTS = [0.0, 0.05, 0.1]  # usual ones; any number from 0 to less than 1 is valid
_RANKS = [2**exponent for exponent in range(11)]  # usual ranks; any whole number is valid


def property_domain(field: str) -> PropertyDomain:
    """The domain of a field of a job, or of an argument of a query.

    Names and settings are open categories: an unlisted value may be another spelling, be empty, or name a user version,
    or its answer is that the job is outside the version's domain. Numbers are whole.

    >>> property_domain("loss").values, property_domain("batch_size").interval
    (['', 'full', 'chunked'], 1)
    """
    if field in (*NUMBERS, *ARGUMENTS) and field not in ("lora_r", IMAGES):
        return PropertyDomain(
            variableType=VariableTypeEnum.DISCRETE_VARIABLE_TYPE, interval=1, domainRange=[1, _LARGEST + 1]
        )
    return PropertyDomain(variableType=VariableTypeEnum.OPEN_CATEGORICAL_VARIABLE_TYPE, values=_values(field))


def _values(field: str) -> list[Any]:
    """The values of a name or a setting; an empty setting takes the value of the stack."""
    if field in NAMES:
        return _names()[field]
    if field in FLAGS:
        return [*([""] if field in SETTINGS else []), False, True]
    if field == DROPOUT:
        return ["", *_DROPOUTS]
    if field == "lora_r":
        return ["", *_RANKS]
    if field == IMAGES:
        return ["", *_IMAGE_TOKENS]
    if field == GPU_MEMORY:
        return ["", *_MEMORY]
    if field == HOST_LIMIT:
        return ["", *_HOST_MEMORY]
    if field in RUN_LENGTH:
        return ["", *_LENGTHS]
    return [*([""] if field in SETTINGS else []), *choices(field)]


@cache
def _names() -> dict[str, list[str]]:
    """The names in released versions, read without the libraries that load a version."""
    found: dict[str, dict[str, None]] = {field: {} for field in NAMES}
    for card in sorted(_VERSIONS.glob("*/card.json")):
        version = card.parent.name
        try:
            domain = json.loads(card.read_text(encoding="utf-8"))["domain"]
        except (OSError, ValueError, LookupError) as error:
            raise AutoConfError(f"version {version}: cannot read {card.name}: {error}") from error
        found["model_version"][version] = None
        for field, names in (
            ("model_name", domain["models"]),
            ("method", domain["methods"]),
            ("gpu_model", domain["gpus"]),
        ):
            found[field] |= dict.fromkeys(names)
    return {field: list(names) for field, names in found.items()}
