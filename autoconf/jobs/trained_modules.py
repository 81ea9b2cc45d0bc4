"""Read which modules are trained whole beside adapters: a value of the setting, or names as in ``modules_to_save``."""

from __future__ import annotations

from typing import Any, get_args

from autoconf.jobs.lora_targets import names_in
from autoconf.jobs.stack import TrainedModules
from autoconf.jobs.values import choice

VALUES: tuple[str, ...] = get_args(TrainedModules)
# The names of token embeddings and of the head in transformers' decoder models, such as model.embed_tokens.
_NAMES = {
    **dict.fromkeys(("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"), "embeddings"),
    **dict.fromkeys(("lm_head", "embed_out"), "head"),
}


def read_trained(field: str, value: Any) -> str:
    """Read the modules that are trained whole beside adapters.

    Args:
        field: name for the error message.
        value: one of ``VALUES`` regardless of case and separators, or names of modules as in PEFT's
            ``modules_to_save``: a list, or text with commas or spaces between them.

    Raises:
        ValueError: the value is anything else; the message names modules that are neither embeddings nor a head.

    >>> read_trained("trained_modules", ["lm_head", "embed_tokens"]), read_trained("trained_modules", "Head")
    ('embeddings_and_head', 'head')
    >>> read_trained("trained_modules", ["lm_head", "norm"])
    Traceback (most recent call last):
    ValueError: trained_modules: only embeddings (embed_tokens, wte, ...) and a head (lm_head) are covered, got norm
    """
    names = names_in(value)
    parts = {name: _NAMES.get(name.rpartition(".")[2]) for name in names}
    if not any(parts.values()) and isinstance(value, str):
        return choice(field, value, VALUES)
    if unknown := [name for name, part in parts.items() if part is None]:
        raise ValueError(
            f"{field}: only embeddings (embed_tokens, wte, ...) and a head (lm_head) are covered, got "
            f"{ascii(', '.join(unknown)[:80])[1:-1]}"
        )
    if not names and value != []:
        return choice(field, value, VALUES)
    return "_and_".join(sorted({str(part) for part in parts.values()})) or "none"
