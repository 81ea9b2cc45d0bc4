"""The variables of a shell script that is followed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.expansion import Expander, Value
from autoconf.jobs.importers.words import limited, unknown

_MOST_WORK = 1_000_000  # variables that are copied, at branches and commands
_LONGEST_ARRAY = 1 << 18  # characters


class Variables:
    """The variables of a script, and how its statements change them.

    Attributes:
        file: The script.
        variables: The value of each variable that is set.
        assumed: A sentence for each default that was taken because a variable is not set.
    """

    def __init__(self, file: str, variables: dict[str, Value]) -> None:
        self.file = file
        self.variables = variables
        self.variables.setdefault("0", file)
        self.assumed: dict[str, None] = {}
        self.source = b""
        self._exported = set(variables)
        self._exports_all = False
        self._locals: list[dict[str, Value | None]] = []  # of each function that is called: variables from before it
        self._work = 0

    @property
    def words(self) -> Expander:
        expander = Expander(self.source, self.variables)
        expander.assumed = self.assumed
        return expander

    def forget(self, names: Iterable[str], why: str) -> None:
        for name in names:
            self.variables[name] = unknown(f"${name}", why)

    def declare(self, node: Any) -> None:
        """Assign what ``local``, ``export`` and the like do."""
        kind = self.words.raw(node.children[0])
        options = [self.words.raw(child) for child in node.children if child.type == "word"]
        for child in node.children:
            is_assignment = child.type == "variable_assignment"
            if not is_assignment and child.type != "variable_name":
                continue
            target = child.child_by_field_name("name") if is_assignment else child
            name = self.words.raw(target) if target is not None else ""
            if kind in ("local", "declare", "typeset") and self._locals:
                self._locals[-1].setdefault(name, self.variables.get(name))
            if kind == "export" or any(re.fullmatch(r"-\w*x\w*", option) for option in options):
                self._exported.add(name)
            if is_assignment:
                self.assign(child)
                if any(re.fullmatch(r"-\w*i\w*", option) for option in options):
                    self.forget([name] if not str(self.variables.get(name)).isdecimal() else [], "set by arithmetic")

    def assign(self, node: Any, exported: bool = False) -> None:
        target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if target is None:
            return
        name = self.words.raw(target)
        base = re.match(r"\w*", name)
        key = base[0] if base else name
        if exported or self._exports_all:
            self._exported.add(key)
        if target.type == "subscript":
            self.variables[key] = unknown(f"${key}", "an array that is set item by item")
            return
        appends = any(child.type == "+=" for child in node.children)
        old = self.variables.get(name)
        new: Value
        if value is not None and value.type == "array":
            items = [
                word
                for child in value.children
                if child.type not in ("(", ")", "comment")
                for word in self.words.words(child)
            ]
            new = [*(old if isinstance(old, list) else [] if old is None else [old]), *items] if appends else items
            if sum(map(len, new)) > _LONGEST_ARRAY:
                new = unknown(f"${name}", "too long")
        else:
            text = "" if value is None else self.words.text(value)
            start = (old[0] if old else "") if isinstance(old, list) else old or ""
            new = limited(name, f"{start}{text}" if appends else text)
        self.variables[name] = new

    def spend(self) -> None:
        self._work += len(self.variables) + 1
        if self._work > _MOST_WORK:
            raise BadInput(f"{self.file}: not a job's script: too many branches and variables")

    def restore(self, variables: Mapping[str, Value]) -> None:
        self.spend()
        kept = dict(variables)
        self.variables.clear()
        self.variables.update(kept)

    def set_option(self, words: Sequence[str]) -> None:
        """Do what ``set`` does to variables."""
        if words[:1] == ["--"]:
            self.set_arguments(words[1:])
        elif "allexport" in words or any(re.fullmatch(r"[-+]\w*a\w*", word) for word in words):
            self._exports_all = any(word.startswith("-") for word in words)

    def set_arguments(self, words: Sequence[str]) -> None:
        for key in [key for key in self.variables if key.isdigit() and key != "0"]:
            del self.variables[key]
        self.variables["@"] = list(words)
        self.variables.update({str(i): word for i, word in enumerate(words, 1)})

    def shift(self, count: str) -> None:
        given = self.variables.get("@", [])
        if isinstance(given, list) and given and count.isdecimal():
            self.set_arguments(given[int(count) :])
        else:
            self.forget([key for key in self.variables if key.isdigit() and key != "0"], "not known before it runs")

    def inherited(self) -> dict[str, Value]:
        """The variables of a script that this one runs."""
        return {name: value for name, value in self.variables.items() if name in self._exported and name != "0"}
