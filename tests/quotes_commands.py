"""Commands, scripts and tests that a page quotes: each function returns the wrong ones."""

import argparse
import ast
import re
import shlex
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import typer.main
from _pytest.mark.expression import Expression

from quotes import FENCE, INLINE, lines_of_code, prose, tree_of
from scripts import ROOT

#: Options of other programs that pages name by themselves.
FOREIGN = {"--user", "--gpus", "--nnodes", "--max-restarts", "--verify_dataset_integrity"}


# Commands and options


@cache
def commands() -> dict[str, Any]:
    """Return the commands of ``isopose`` by name."""
    from isopose.cli import app

    by_name: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return by_name


def options_of(command: Any) -> set[str]:
    """All spellings of a command's options."""
    return {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {
        "--help",
        "-h",
    }


def wrong_commands(text: str) -> list[str]:
    """Commands of ``isopose`` in blocks that do not parse."""
    wrong = []
    for language, block in FENCE.findall(text):
        if language not in ("", "console", "bash", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|[\s/])(?:-m )?isopose (?=[a-z])(.*)", line.partition(" # ")[0])
            if match is None or "pip install" in line:
                continue
            words = shlex.split(re.split(r"\s(?:[|;&]|&&|>)(?:\s|$)|;", match[1])[0], comments=True)
            words = [word for word in words if word != "..." and word != "…"]
            if words[0] not in commands():
                wrong.append(f"isopose {words[0]}: no such command")
                continue
            try:
                commands()[words[0]].make_context(words[0], words[1:])
            except Exception as error:
                wrong.append(f"isopose {match[1]}: {error}")
    return wrong


def wrong_options(text: str) -> list[str]:
    """Options in sentences that the command, or every command and script, does not have."""
    known = {option for command in commands().values() for option in options_of(command)}
    known |= {option for path in scripts() for option in script_options(path)} | FOREIGN | {"--version"}
    wrong = []
    for code in INLINE.findall(prose(text)):
        words = code.split()
        if words[0] == "isopose" and len(words) > 1 and words[1].isalpha():
            name = words[1]
            if name not in commands():
                wrong.append(f"{code}: isopose has no command {name!r}")
                continue
            # After two dashes come the words of another program.
            own = takewhile(lambda word: word != "--", words[2:])
            options = {word.partition("=")[0] for word in own if word.startswith("-")}
            wrong += [f"{code}: no {option}" for option in sorted(options - options_of(commands()[name]))]
        elif words[0].startswith("--") and words[0].partition("=")[0] not in known:
            wrong.append(f"{code}: no command has it")
    return wrong


# Scripts


@cache
def scripts() -> tuple[Path, ...]:
    """Return the scripts that pages may quote with options."""
    return tuple(path for folder in ("benchmarks", "fuzz") for path in sorted((ROOT / folder).glob("*.py")))


class Refused(Exception):
    """Error of a script's argument parser."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises in place of exiting."""

    def error(self, message: str) -> NoReturn:
        raise Refused(message)


KINDS = {"int": int, "float": float, "str": str, "Path": Path}


def functions_beside(path: Path) -> list[ast.FunctionDef]:
    """Functions that a script imports from another one beside it, such as options that both have."""
    functions = []
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and path.with_name(f"{node.module}.py").is_file():
            names = {name.name for name in node.names}
            body = tree_of(path.with_name(f"{node.module}.py")).body
            functions += [one for one in body if isinstance(one, ast.FunctionDef) and one.name in names]
    return functions


@cache
def parser_of(path: Path) -> Parser | None:
    """Rebuild a script's parser from its source without running it; None if it parses arguments itself."""
    tree = tree_of(path)
    parts = [tree, *functions_beside(path)]
    calls = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)]
    added = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"]
    parser = Parser(add_help=False, allow_abbrev=False)
    for call in added:
        named: dict[str, Any] = {}
        for keyword in call.keywords:
            match keyword.arg, keyword.value:
                case "type", ast.Name(id=kind):
                    named["type"] = KINDS.get(kind, str)
                case (("action" | "nargs" | "dest" | "required"), ast.Constant(value=value)):
                    named[str(keyword.arg)] = value
        parser.add_argument(*(a.value for a in call.args if isinstance(a, ast.Constant)), **named)
    if added:
        return parser
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    if not mains or "typer.run(main)" not in ast.unparse(tree):
        return None
    arguments = mains[0].args.args
    defaults = [None] * (len(arguments) - len(mains[0].args.defaults)) + list(mains[0].args.defaults)
    for argument, default in zip(arguments, defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        options = re.search(r"'(--[\w-]+)'", annotation)
        name = options[1] if options else f"--{argument.arg.replace('_', '-')}"
        if default is None:
            parser.add_argument(argument.arg)
        elif re.search(r"\bbool\b", annotation):
            parser.add_argument(name, name.replace("--", "--no-", 1), action="store_true")
        elif "list[" in annotation:
            parser.add_argument(name, action="append")
        else:
            parser.add_argument(name, type=int if re.search(r"\bint\b", annotation) else str)
    return parser


def script_options(path: Path) -> set[str]:
    """Options of a script."""
    parser = parser_of(path)
    return set() if parser is None else set(parser._option_string_actions)


def wrong_scripts(text: str) -> list[str]:
    """``python PATH …`` whose file is not there or does not know the words."""
    wrong = []
    for code in lines_of_code(text):
        match = re.match(r"\s*(?:\$ )?(?:\S*/)?python3? ([\w./-]+)(.*)", code)
        if match is None or match[1].startswith("-"):
            continue
        path = ROOT / match[1]
        path = path / "__main__.py" if path.is_dir() else path
        if not path.is_file():
            wrong.append(f"{code}: no such script")
            continue
        parser, words = parser_of(path), shlex.split(match[2], comments=True)
        if parser is None or not words:
            continue
        try:
            parser.parse_args([word for word in words if word not in ("&", "…", "...")])
        except Refused as error:
            wrong.append(f"{code}: {error}")
    return wrong


# Tests


@cache
def tests_of(path: Path) -> tuple[str, ...]:
    """Return the names that ``pytest -k`` matches: of the file and of its tests."""
    files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    return tuple(
        f"{file.name} {node.name}"
        for file in files
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def wrong_tests(text: str) -> list[str]:
    """``pytest`` commands whose files are not there or that would select nothing."""
    wrong = []
    for code in lines_of_code(text):
        match = re.search(r"(?:^|\s)pytest (.*)", code)
        if match is None:
            continue
        words = shlex.split(match[1], comments=True)
        expected = words[words.index("-k") + 1] if "-k" in words else ""
        files = [ROOT / word.partition("::")[0] for word in words if word.startswith("tests")]
        gone = [file for file in files if not file.exists()]
        wrong += [f"{code}: no {file.relative_to(ROOT)}" for file in gone]
        names = [
            name.lower() for file in files or [ROOT / "tests"] if file not in gone for name in tests_of(file)
        ]
        names_wanted = [word.partition("::")[2] for word in words if "::" in word]
        wrong += [f"{code}: no {name}" for name in names_wanted if not any(name in one for one in names)]
        chosen = Expression.compile(expected) if expected else None
        if not gone and chosen and not any(chosen.evaluate(_within(name)) for name in names):
            wrong.append(f"{code}: selects no test")
    return wrong


def _within(name: str) -> Callable[..., bool]:
    return lambda word, **_: word.lower() in name
