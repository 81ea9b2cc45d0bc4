"""Short YAML and JSON texts that expand, nest or repeat without bounds, each of at most 1 MiB."""

import json

from autoconf.jobs.importers.documents import MAX_BYTES

LEVELS = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
BOMBS = {
    "aliases": "\n".join(["l0: &l0 [x, x, x]", *LEVELS]),
    "a long text": "a: &a " + "x" * 500_000 + "\nb: [" + "*a," * 19_000 + "]",
    "merges": "\n".join(["l0: &l0 {a: 1}", *(level.replace("[", "{<<: [").replace("]", "]}") for level in LEVELS)]),
    "deep aliases": "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} {'[' * 50}*a{i - 1}{']' * 50}" for i in range(1, 9))]),
    "60,000 keys": "\n".join(f"key{i}: {i}" for i in range(60_000)),
    "60,000 keys of JSON": json.dumps({f"k{i}": i for i in range(60_000)}),
    "a list of JSON": json.dumps([0] * 300_000),
    "brackets": "[" * MAX_BYTES,
    "braces": '{"a":' * (MAX_BYTES // 5),
    "dashes": "- " * (MAX_BYTES // 2),
    "documents": "---\n" * (MAX_BYTES // 4),
    "directives": "".join(f"%TAG !a{i}! x\n" for i in range(MAX_BYTES // 16)),
    "a quotation": '"' + "a" * (MAX_BYTES - 1),
    "lines": "a: b\n" + "  c\n" * (MAX_BYTES // 4 - 2),
    "spaces": " " * (MAX_BYTES - 1) + "a",
    "digits": "1:" * (MAX_BYTES // 2 - 1) + "1",
    "deep JSON beside a long key": '{"' + "k" * 2000 + '": ' + "[" * 900 + "]" * 900 + "}",
}
