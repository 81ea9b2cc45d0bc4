"""Follow a bash script, without running anything: its commands with their words, and the files that it writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.bash_syntax import parsed
from autoconf.jobs.importers.called_scripts import Call, called, script_next_to
from autoconf.jobs.importers.documents import read_text, shortened
from autoconf.jobs.importers.expansion import Value, assigned_in, merged
from autoconf.jobs.importers.shell_tests import holds
from autoconf.jobs.importers.shell_variables import Variables
from autoconf.jobs.importers.words import cleaned, echoed, is_unknown, joined, limited, unknown

_MOST_COMMANDS = 4_000
_DEEPEST = 40
_SUBMITTERS = ("sbatch", "qsub", "bsub")  # a here-document is the script that they submit
# The condition of a loop over the arguments of a script, such as [[ $# -gt 0 ]] or [ -n "$1" ].
_OVER_ARGUMENTS = re.compile(r"\$#|\$\{#\}|\"?\$\{?1(:?-)?\}?\"?\s*(!=|=~|\]|$)|\$[@*]|^getopts\b")
_TESTS = ("[", "[[", "test", "false", "command", "which", "type", "hash", "grep", "nvidia-smi")
# Files that other scripts source and that set up an environment, but no setting of a job.
_ENVIRONMENTS = re.compile(r"(^|/)(activate|\.?bashrc|\.?profile|\.bash_profile|[\w.-]*conda[\w.-]*|modules?[\w.-]*)$")


class Command(NamedTuple):
    """A simple command.

    Attributes:
        words: Its words, expanded.
        lines: The line of each word.
        variables: The variables of the script at this place.
        file: The script that has it, which another may run.
    """

    words: list[str]
    lines: list[int]
    variables: dict[str, str]
    file: str = ""


class Script(NamedTuple):
    """What a script does.

    Attributes:
        commands: Its commands, in order; those of each branch of an ``if`` are among them.
        files: The text of each file that a here-document writes.
        assumed: A sentence for each default that was taken because a variable is not set.
        called: The paths of the scripts of the same folder that it runs or sources.
        not_found: The names of the scripts that it runs and that are elsewhere, each with its line.
    """

    commands: list[Command]
    files: dict[str, str]
    assumed: tuple[str, ...]
    called: tuple[str, ...] = ()
    not_found: Mapping[str, int] = {}


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
    return Script(shell.commands, shell.files, tuple(shell.assumed), tuple(shell.called), shell.not_found)


def _runs_its_input(words: Sequence[str]) -> bool:
    return words[0] in _SUBMITTERS or words[-1].rpartition("/")[2] in ("bash", "sh") or words[-2:] == ["bash", "-s"]


def _reads_all(words: Sequence[str]) -> bool:
    """Whether ``read`` takes its whole input into its last word, as ``read -r -d '' NAME`` does."""
    return re.search(r" -r?d  [A-Za-z_]\w*$", " ".join(words)) is not None


class _Shell(Variables):
    """The state of a script. A ``_run`` returns whether the script ends there."""

    def __init__(self, file: str, variables: dict[str, Value]) -> None:
        super().__init__(file, variables)
        self.commands: list[Command] = []
        self.files: dict[str, str] = {}
        self.called: dict[str, None] = {}  # paths of scripts that this one runs
        self.not_found: dict[str, int] = {}  # names of such scripts that are elsewhere, each with its line
        self._functions: dict[str, tuple[str, bytes, int, Any]] = {}
        self._open = [file]
        self._depth = 0
        self._first_line = 0

    def follow_text(self, text: str, first_line: int) -> bool:
        """Follow a text in the current state, as ``eval`` does."""
        source, root = parsed(text, self.file, first_line)
        return self._inside(source, first_line, root.children)

    def _inside(self, source: bytes, first_line: int, nodes: Sequence[Any]) -> bool:
        before = self.source, self._first_line
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadInput(f"{self.file}: commands within commands, more than {_DEEPEST} levels deep")
        self.source, self._first_line = source, first_line
        try:
            return self._run_all(nodes)
        finally:
            self.source, self._first_line = before
            self._depth -= 1

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
                    self.forget(assigned_in(node, self.words), "set by arithmetic")
                return self._run_all(node.children)
            case "for_statement" | "c_style_for_statement" | "while_statement":
                self._loop(node)
            case "pipeline" | "subshell":
                before = dict(self.variables)
                self._run_all(node.children)
                self.restore(before)
            case _:
                self._define(node)
        return False

    def _define(self, node: Any) -> None:
        match node.type:
            case "variable_assignment" | "variable_assignments":
                for child in [node, *node.children]:
                    if child.type == "variable_assignment":
                        self.assign(child)
            case "declaration_command":
                self.declare(node)
            case "function_definition":
                name = self.words.raw(node.child_by_field_name("name"))
                body = node.child_by_field_name("body")
                self._functions[name] = (self.file, self.source, self._first_line, body)
            case "unset_command":
                for child in node.children[1:]:
                    self.variables.pop(self.words.raw(child), None)

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
                words = self.words.words(redirect.child_by_field_name("destination"))
                target = words[0] if words else None
                appends = any(child.type == ">>" for child in redirect.children)
        start = len(self.commands)
        ended = body is not None and self._run(body)
        first = self.commands[start].words if len(self.commands) > start else []
        if text is not None and first[:1] == ["tee"]:
            target = first[-1]
        if target is not None and first[:1] in (["cat"], ["tee"], ["echo"], ["printf"]):
            written = text if text is not None else echoed(first) or unknown(target, "written by a command")
            self.files[target] = self.files.get(target, "") + written if appends else written
        elif text is not None and first[:1] == ["read"] and _reads_all(first):
            self.variables[first[-1]] = limited(first[-1], text.strip())
        elif text is not None and any(_runs_its_input(command.words) for command in self.commands[begin:]):
            self.follow_text(text, self._first_line + node.start_point[0] + 1)
        return ended

    def _here_document(self, node: Any) -> str:
        body = next((child for child in node.children if child.type == "heredoc_body"), None)
        if body is None:
            return ""
        mark = next((self.words.raw(child) for child in node.children if child.type == "heredoc_start"), "")
        text = self.words.raw(body)
        if not mark.strip().startswith(("'", '"', "\\")):
            pieces = self.words.between(body, body.start_byte, body.end_byte, quoted=True)
            text = "".join(piece[0] if piece else " " for piece in pieces)
        return text

    def _branches(self, bodies: Sequence[Sequence[Any]], complete: bool) -> bool:
        """Run alternatives, of which one is taken, or none if they are not ``complete``."""
        before = dict(self.variables)
        results = [] if complete else [before]
        for body in bodies:
            self.restore(before)
            if not self._run_all(body):
                results.append(dict(self.variables))
        if results:
            self.restore(merged(results))
        return not results

    def _if(self, node: Any) -> bool:
        clauses: list[tuple[Any, list[Any]]] = [(node.children[1], [])]
        for child in node.children[1:]:
            if child.type in ("elif_clause", "else_clause"):
                clauses.append((child.children[1] if child.type == "elif_clause" else None, list(child.children)))
            elif clauses[0][1] or child.type == "then":
                clauses[0][1].append(child)
            else:
                self._run(child)
        possible: list[list[Any]] = []
        for test, body in clauses:
            known = test is None or holds(test, self.words, " ".join(map(self.words.raw, body)))
            possible += [] if known is False else [body]
            if known:
                return self._branches(possible, True)
        return self._branches(possible, False)

    def _list(self, node: Any) -> bool:
        left, operator, right = node.children[0], node.children[1].type, node.children[-1]
        if self._run(left):
            return True
        words = self.words
        if operator in ("&&", "||") and (known := holds(left, words, words.raw(right))) is not None:
            return known is (operator == "&&") and self._run(right)
        name = left.child_by_field_name("name") if left.type == "command" else None
        is_test = left.type in ("test_command", "negated_command", "list") or (
            name is not None and words.raw(name) in _TESTS
        )
        return self._branches([[right]], False) if operator == "||" or is_test else self._run(right)

    def _case(self, node: Any) -> bool:
        subject = self.words.text(node.child_by_field_name("value"))
        items = [child for child in node.children if child.type == "case_item"]
        patterns = [[self.words.raw(v) for v in item.children_by_field_name("value")] for item in items]
        known = not is_unknown(subject) and not any("$" in p for each in patterns for p in each)
        if known:
            for item, each in zip(items, patterns, strict=True):
                if any(fnmatchcase(subject, pattern.strip("\"'")) for pattern in each):
                    return self._run_all(item.children)
            return False
        return self._branches([item.children for item in items], any("*" in each for each in patterns))

    def _loop(self, node: Any) -> None:
        body = node.child_by_field_name("body")
        if self._is_over_arguments(node):
            return
        name = node.child_by_field_name("variable")
        values = [word for value in node.children_by_field_name("value") for word in self.words.words(value)]
        once = node.type == "for_statement" and len(values) == 1 and not is_unknown(values[0])
        before = dict(self.variables)
        if not once:
            for changed in assigned_in(node, self.words):
                old = self.variables.get(changed)
                shown = "not set" if old is None else " ".join(old) if isinstance(old, list) else old
                self.variables[changed] = unknown(f"${changed}", f"{shown[:60]}, or another value in a loop")
        if name is not None and node.type == "for_statement":
            value = joined(self.words.raw(name), values) if values else None
            self.variables[self.words.raw(name)] = (
                unknown(f"${self.words.raw(name)}", "of a loop") if value is None else value
            )
        if body is not None:
            self._run(body)
        if not once:
            self.restore(merged([before, dict(self.variables)]))

    def _is_over_arguments(self, node: Any) -> bool:
        """Whether a loop goes over the arguments of the script, and it has none."""
        condition = node.child_by_field_name("condition")
        over = [condition] if condition is not None else node.children_by_field_name("value")
        text = " ".join(self.words.raw(part) for part in over)
        if self.variables.get("@") or not _OVER_ARGUMENTS.search(text) or node.type == "c_style_for_statement":
            return False
        if node.type == "for_statement" and not re.fullmatch(r'"?\$[@*]"?', text):
            return False
        self.assumed.setdefault("the script is run without arguments ($@ is empty)")
        return True

    def _command(self, node: Any) -> bool:
        words: list[str] = []
        lines: list[int] = []
        assignments = [child for child in node.children if child.type == "variable_assignment"]
        for child in node.children:  # the words come first: X=8 command $X has the X from before
            if child.type not in ("variable_assignment", "file_redirect", "herestring_redirect", "heredoc_redirect"):
                found = self.words.words(child)
                words += found
                lines += [self._first_line + child.start_point[0] + 1] * len(found)
        if not words:
            for child in assignments:
                self.assign(child)
            return False
        before = dict(self.variables) if assignments else None
        exported = set(self._exported)
        for child in assignments:
            self.assign(child, exported=True)
        ended = self._known_command(words, lines)
        if before is not None:
            self._exported = exported
            self.restore(before)
        return ended

    def _known_command(self, words: list[str], lines: list[int]) -> bool:
        name, rest = words[0], words[1:]
        if name in self._functions and self._depth < _DEEPEST:
            self._call_function(name, rest)
            return False
        if name == "eval" and rest:
            return self.follow_text(" ".join(rest), lines[0] - 1)
        if name in ("source", ".") and rest:
            self._source_file(rest[0], rest[1:])
        elif call := called(words):
            self._run_file(call, lines[0])
        elif name == "shift":
            self.shift(rest[0] if rest else "1")
        elif name in ("read", "mapfile", "readarray", "getopts", "let", "printf"):
            changed = rest[1:2] if rest[:1] == ["-v"] else [] if name == "printf" else rest
            names = (re.match(r"[A-Za-z_]\w*", word) for word in changed)
            self.forget([found[0] for found in names if found], "not known before it runs")
        elif name == "set":
            self.set_option(rest)
        if len(self.commands) >= _MOST_COMMANDS:
            raise BadInput(f"{self.file}: not a job's script: more than {_MOST_COMMANDS:,} commands")
        self.spend()
        texts = {key: value for key, value in self.variables.items() if isinstance(value, str)}
        self.commands.append(Command(words, lines, texts, self.file))
        return name in ("exit", "return", "exec") and not (name == "exec" and not rest)

    def _call_function(self, name: str, arguments: Sequence[str]) -> None:
        file, source, first_line, body = self._functions[name]
        before = {key: value for key, value in self.variables.items() if key.isdigit() or key == "@"}
        self.set_arguments(arguments)
        self._locals.append({})
        self.file, here = file, self.file
        self._inside(source, first_line, [body] if body is not None else [])
        self.file = here
        for local, value in self._locals.pop().items():
            if value is None:
                self.variables.pop(local, None)
            else:
                self.variables[local] = value
        self.set_arguments([])
        self.variables.update(before)

    def _source_file(self, name: str, arguments: Sequence[str]) -> None:
        """Follow a file that the script sources; one that is elsewhere may change each variable."""
        path = script_next_to(self.file, name)
        if path is None:
            for key in self.variables if not _ENVIRONMENTS.search(name) else ():
                self.variables[key] = unknown(f"${key}", f"{shortened(name)} may change it")
        elif path not in self._open:
            before = {key: value for key, value in self.variables.items() if key.isdigit() or key == "@"}
            if arguments:
                self.set_arguments(arguments)
            self._follow_file(path)
            if arguments:
                self.set_arguments([])
                self.variables.update(before)

    def _run_file(self, call: Call, line: int) -> None:
        """Follow a script that the script runs, with the variables that it exports."""
        path = script_next_to(self.file, call.script)
        if path is None:
            self.not_found.setdefault(call.script, line)
        elif path not in self._open:
            before, functions = dict(self.variables), self._functions
            self.restore({**self.inherited(), **call.variables, "0": path})
            self.set_arguments(call.arguments)
            self._functions = {}
            self._follow_file(path)
            self._functions = functions
            self.restore(before)

    def _follow_file(self, path: str) -> None:
        self.called[path] = None
        self._open.append(path)
        self.file, here = path, self.file
        self.follow_text(cleaned(read_text(path)), 0)
        self.file = here
        self._open.pop()
