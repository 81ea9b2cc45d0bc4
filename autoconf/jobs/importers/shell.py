"""Follow a bash script, without running anything: its commands with their words, and the files that it writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.bash_syntax import parsed
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.expansion import Expander, Value, assigned_in, merged
from autoconf.jobs.importers.words import is_unknown, joined, limited, unknown

_MOST_COMMANDS = 4_000
_DEEPEST = 40
_MOST_WORK = 1_000_000  # variables that are copied, at branches and commands
_SUBMITTERS = ("sbatch", "qsub", "bsub")  # a here-document is the script that they submit
_TESTS = ("[", "[[", "test", "false", "command", "which", "type", "hash", "grep", "nvidia-smi")
# Files that other scripts source and that set up an environment, but no setting of a job.
_ENVIRONMENTS = re.compile(r"(^|/)(activate|\.?bashrc|\.?profile|\.bash_profile|[\w.-]*conda[\w.-]*|modules?[\w.-]*)$")


class Command(NamedTuple):
    """A simple command.

    Attributes:
        words: Its words, expanded.
        lines: The line of each word.
        variables: The variables of the script at this place.
    """

    words: list[str]
    lines: list[int]
    variables: dict[str, str]


class Script(NamedTuple):
    """What a script does.

    Attributes:
        commands: Its commands, in order; those of each branch of an ``if`` are among them.
        files: The text of each file that a here-document writes.
        assumed: A sentence for each default that was taken because a variable is not set.
    """

    commands: list[Command]
    files: dict[str, str]
    assumed: tuple[str, ...]


def follow(text: str, file: str, variables: Mapping[str, str]) -> Script:
    """Follow a script.

    Args:
        text: The script.
        file: Its name, for messages.
        variables: The environment.

    Raises:
        BadInput: The text is not bash, or too long.

    >>> from autoconf.jobs.importers.words import described
    >>> script = follow("BS=4\\nif x; then BS=8; fi\\ntrl sft --a=$BS", "run.sh", {})
    >>> described(script.commands[-1].words[2])
    '--a=$BS (4 or 8)'
    """
    shell = _Shell(file, dict(variables))
    shell.follow_text(text, 0)
    return Script(shell.commands, shell.files, tuple(shell.assumed))


def _runs_its_input(words: Sequence[str]) -> bool:
    return words[0] in _SUBMITTERS or words[-1].rpartition("/")[2] in ("bash", "sh") or words[-2:] == ["bash", "-s"]


class _Shell:
    """The state of a script. A ``_run`` returns whether the script ends there."""

    def __init__(self, file: str, variables: dict[str, Value]) -> None:
        self.file = file
        self.variables = variables
        self.variables.setdefault("0", file)
        self.commands: list[Command] = []
        self.files: dict[str, str] = {}
        self.assumed: dict[str, None] = {}
        self._functions: dict[str, tuple[bytes, Any]] = {}
        self._locals: list[dict[str, Value | None]] = []  # of each function that is called: variables from before it
        self._depth = 0
        self._work = 0
        self._source = b""
        self._first_line = 0
        self._expander = Expander(b"", self.variables)

    def follow_text(self, text: str, first_line: int) -> bool:
        """Follow a text in the current state, as ``eval`` does."""
        source, root = parsed(text, self.file, first_line)
        return self._inside(source, first_line, root.children)

    def _inside(self, source: bytes, first_line: int, nodes: Sequence[Any]) -> bool:
        before = self._source, self._first_line
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadInput(f"{self.file}: commands within commands, more than {_DEEPEST} levels deep")
        self._source, self._first_line = source, first_line
        try:
            return self._run_all(nodes)
        finally:
            self._source, self._first_line = before
            self._depth -= 1

    @property
    def _words(self) -> Expander:
        expander = Expander(self._source, self.variables)
        expander.assumed = self.assumed
        return expander

    def _run_all(self, nodes: Sequence[Any]) -> bool:
        return any(self._run(node) for node in nodes)

    def _run(self, node: Any) -> bool:
        match node.type:
            case "command":
                return self._command(node)
            case "redirected_statement":
                return self._redirected(node)
            case "if_statement":
                return self._if(node)
            case "case_statement":
                return self._case(node)
            case "list":
                return self._list(node)
            case "compound_statement" | "do_group" | "else_clause" | "negated_command":
                if node.children[:1] and node.children[0].type == "((":
                    self._forget(assigned_in(node, self._words), "set by arithmetic")
                return self._run_all(node.children)
            case "for_statement" | "c_style_for_statement" | "while_statement":
                self._loop(node)
            case "pipeline" | "subshell":
                before = dict(self.variables)
                self._run_all(node.children)
                self._restore(before)
            case _:
                self._define(node)
        return False

    def _forget(self, names: Iterable[str], why: str) -> None:
        for name in names:
            self.variables[name] = unknown(f"${name}", why)

    def _declare(self, node: Any) -> None:
        """Assign what ``local``, ``export`` and the like do."""
        options = [self._words.raw(child) for child in node.children if child.type == "word"]
        for child in node.children:
            is_assignment = child.type == "variable_assignment"
            if not is_assignment and child.type != "variable_name":
                continue
            target = child.child_by_field_name("name") if is_assignment else child
            name = self._words.raw(target) if target is not None else ""
            if node.children[0].type in ("local", "declare", "typeset") and self._locals:
                self._locals[-1].setdefault(name, self.variables.get(name))
            if is_assignment:
                self._assign(child)
                if any(re.fullmatch(r"-\w*i\w*", option) for option in options):
                    self._forget([name] if not str(self.variables.get(name)).isdecimal() else [], "set by arithmetic")

    def _define(self, node: Any) -> None:
        match node.type:
            case "variable_assignment" | "variable_assignments":
                for child in [node, *node.children]:
                    if child.type == "variable_assignment":
                        self._assign(child)
            case "declaration_command":
                self._declare(node)
            case "function_definition":
                name = self._words.raw(node.child_by_field_name("name"))
                self._functions[name] = (self._source, node.child_by_field_name("body"))
            case "unset_command":
                for child in node.children[1:]:
                    self.variables.pop(self._words.raw(child), None)

    def _spend(self) -> None:
        self._work += len(self.variables) + 1
        if self._work > _MOST_WORK:
            raise BadInput(f"{self.file}: not a job's script: too many branches and variables")

    def _restore(self, variables: Mapping[str, Value]) -> None:
        self._spend()
        kept = dict(variables)
        self.variables.clear()
        self.variables.update(kept)

    def _assign(self, node: Any) -> None:
        target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if target is None:
            return
        name = self._words.raw(target)
        base = re.match(r"\w*", name)
        key = base[0] if base else name
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
                for word in self._words.words(child)
            ]
            new = [*(old if isinstance(old, list) else [] if old is None else [old]), *items] if appends else items
            if sum(map(len, new)) > 1 << 18:
                new = unknown(f"${name}", "too long")
        else:
            text = "" if value is None else self._words.text(value)
            start = (old[0] if old else "") if isinstance(old, list) else old or ""
            new = limited(name, f"{start}{text}" if appends else text)
        self.variables[name] = new

    # --- statements -----------------------------------------------------------------------------------------------

    def _redirected(self, node: Any) -> bool:
        body = node.child_by_field_name("body")
        text, target, appends = None, None, False
        redirects, begin = list(node.children), len(self.commands)
        for redirect in redirects:
            if redirect.type == "heredoc_redirect":
                text = self._here_document(redirect)
                redirects += [child for child in redirect.children if child.type == "file_redirect"]
                self._run_all([child for child in redirect.children if child.type in ("pipeline", "list", "command")])
            elif redirect.type == "file_redirect" and redirect.child_by_field_name("destination") is not None:
                words = self._words.words(redirect.child_by_field_name("destination"))
                target = words[0] if words else None
                appends = any(child.type == ">>" for child in redirect.children)
        start = len(self.commands)
        ended = body is not None and self._run(body)
        first = self.commands[start].words if len(self.commands) > start else []
        if text is not None and first[:1] == ["tee"]:
            target = first[-1]
        if target is not None and first[:1] in (["cat"], ["tee"], ["echo"], ["printf"]):
            written = text if text is not None else unknown(target, "written by a command")
            self.files[target] = self.files.get(target, "") + written if appends else written
        elif text is not None and any(_runs_its_input(command.words) for command in self.commands[begin:]):
            self.follow_text(text, self._first_line + node.start_point[0] + 1)
        return ended

    def _here_document(self, node: Any) -> str:
        body = next((child for child in node.children if child.type == "heredoc_body"), None)
        if body is None:
            return ""
        mark = next((self._words.raw(child) for child in node.children if child.type == "heredoc_start"), "")
        text = self._words.raw(body)
        if not mark.strip().startswith(("'", '"', "\\")):
            pieces = self._words.between(body, body.start_byte, body.end_byte, quoted=True)
            text = "".join(piece[0] if piece else " " for piece in pieces)
        return text

    def _branches(self, bodies: Sequence[Sequence[Any]], complete: bool) -> bool:
        """Run alternatives, of which one is taken, or none if they are not ``complete``."""
        before = dict(self.variables)
        results = [] if complete else [before]
        for body in bodies:
            self._restore(before)
            if not self._run_all(body):
                results.append(dict(self.variables))
        if results:
            self._restore(merged(results))
        return not results

    def _if(self, node: Any) -> bool:
        bodies: list[list[Any]] = [[]]
        complete = in_body = False
        for child in node.children:
            if child.type == "then":
                in_body = True
            elif child.type in ("elif_clause", "else_clause"):
                complete = complete or child.type == "else_clause"
                bodies.append(list(child.children))
            elif in_body:
                bodies[0].append(child)
            else:
                self._run(child)
        return self._branches(bodies, complete)

    def _list(self, node: Any) -> bool:
        left, operator, right = node.children[0], node.children[1].type, node.children[-1]
        if self._run(left):
            return True
        words = self._words
        name = left.child_by_field_name("name") if left.type == "command" else None
        is_test = left.type in ("test_command", "negated_command", "list") or (
            name is not None and words.raw(name) in _TESTS
        )
        return self._branches([[right]], False) if operator == "||" or is_test else self._run(right)

    def _case(self, node: Any) -> bool:
        subject = self._words.text(node.child_by_field_name("value"))
        items = [child for child in node.children if child.type == "case_item"]
        patterns = [[self._words.raw(v) for v in item.children_by_field_name("value")] for item in items]
        known = not is_unknown(subject) and not any("$" in p for each in patterns for p in each)
        if known:
            for item, each in zip(items, patterns, strict=True):
                if any(fnmatchcase(subject, pattern.strip("\"'")) for pattern in each):
                    return self._run_all(item.children)
            return False
        return self._branches([item.children for item in items], any("*" in each for each in patterns))

    def _loop(self, node: Any) -> None:
        body = node.child_by_field_name("body")
        name = node.child_by_field_name("variable")
        values = [word for value in node.children_by_field_name("value") for word in self._words.words(value)]
        once = node.type == "for_statement" and len(values) == 1 and not is_unknown(values[0])
        before = dict(self.variables)
        if not once:
            for changed in assigned_in(node, self._words):
                old = self.variables.get(changed)
                shown = "not set" if old is None else " ".join(old) if isinstance(old, list) else old
                self.variables[changed] = unknown(f"${changed}", f"{shown[:60]}, or another value in a loop")
        if name is not None and node.type == "for_statement":
            value = joined(self._words.raw(name), values) if values else None
            self.variables[self._words.raw(name)] = (
                unknown(f"${self._words.raw(name)}", "of a loop") if value is None else value
            )
        if body is not None:
            self._run(body)
        if not once:
            self._restore(merged([before, dict(self.variables)]))

    def _command(self, node: Any) -> bool:
        words: list[str] = []
        lines: list[int] = []
        assignments = [child for child in node.children if child.type == "variable_assignment"]
        for child in node.children:  # the words come first: X=8 command $X has the X from before
            if child.type not in ("variable_assignment", "file_redirect", "herestring_redirect", "heredoc_redirect"):
                found = self._words.words(child)
                words += found
                lines += [self._first_line + child.start_point[0] + 1] * len(found)
        if not words:
            for child in assignments:
                self._assign(child)
            return False
        before = dict(self.variables) if assignments else None
        for child in assignments:
            self._assign(child)
        ended = self._known_command(words, lines)
        if before is not None:
            self._restore(before)
        return ended

    def _known_command(self, words: list[str], lines: list[int]) -> bool:
        name, rest = words[0], words[1:]
        if name in self._functions and self._depth < _DEEPEST:
            source, body = self._functions[name]
            before = {key: value for key, value in self.variables.items() if key.isdigit() or key == "@"}
            self._set_arguments(rest)
            self._locals.append({})
            self._inside(source, self._first_line, [body] if body is not None else [])
            for local, value in self._locals.pop().items():
                if value is None:
                    self.variables.pop(local, None)
                else:
                    self.variables[local] = value
            self._set_arguments([])
            self.variables.update(before)
            return False
        if name == "eval" and rest:
            return self.follow_text(" ".join(rest), lines[0] - 1)
        if name in ("source", ".") and rest and not _ENVIRONMENTS.search(rest[0]):
            for key in self.variables:
                self.variables[key] = unknown(f"${key}", f"{shortened(rest[0])} may change it")
        elif name == "shift":
            given, count = self.variables.get("@", []), rest[0] if rest else "1"
            if isinstance(given, list) and given and count.isdecimal():
                self._set_arguments(given[int(count) :])
            else:
                self._forget(
                    [key for key in self.variables if key.isdigit() and key != "0"], "not known before it runs"
                )
        elif name in ("read", "mapfile", "readarray", "getopts", "let", "printf"):
            changed = rest[1:2] if rest[:1] == ["-v"] else [] if name == "printf" else rest
            names = (re.match(r"[A-Za-z_]\w*", word) for word in changed)
            self._forget([found[0] for found in names if found], "not known before it runs")
        elif name == "set" and rest[:1] == ["--"]:
            self._set_arguments(rest[1:])
        if len(self.commands) >= _MOST_COMMANDS:
            raise BadInput(f"{self.file}: not a job's script: more than {_MOST_COMMANDS:,} commands")
        self._spend()
        texts = {key: value for key, value in self.variables.items() if isinstance(value, str)}
        self.commands.append(Command(words, lines, texts))
        return name in ("exit", "return", "exec") and not (name == "exec" and not rest)

    def _set_arguments(self, words: Sequence[str]) -> None:
        for key in [key for key in self.variables if key.isdigit() and key != "0"]:
            del self.variables[key]
        self.variables["@"] = list(words)
        self.variables.update({str(i): word for i, word in enumerate(words, 1)})
