#!/usr/bin/env python3
"""Generate hypercore/client/sync.py: the library for programs without asyncio.

Each public method of the asynchronous classes gets a twin with the same name, arguments and
documentation, which runs it in the portal's thread. A test keeps the committed file current.

usage: scripts/syncgen.py [--check]
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

CLIENT_DIR = Path(__file__).resolve().parent.parent / "hypercore" / "client"
TARGET = CLIENT_DIR / "sync.py"
SOURCES = (
    ("process.py", "AsyncProcess"),
    ("vm.py", "AsyncFiles"),
    ("vm.py", "AsyncVM"),
    ("async_client.py", "AsyncClient"),
)
WRAPPED = {"AsyncProcess": "Process", "AsyncVM": "VM", "AsyncFiles": "Files"}
HEAD = '''"""Generated from its asynchronous twins by scripts/syncgen.py; do not edit.

The library for programs without asyncio: the same words, results and errors.
"""

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from hypercore.api_records import SpawnResult
from hypercore.attach import ExitStatus
from hypercore.client.async_client import (
    SPAWN_TIMEOUT_S,
    AsyncClient,
)
from hypercore.client.portal import Portal
from hypercore.client.process import AsyncProcess
from hypercore.client.requests import Input
from hypercore.client.results import (
    CheckStep,
    FileInfo,
    HostInfo,
    ImageInfo,
    Output,
    RunResult,
)
from hypercore.client.vm import AsyncFiles, AsyncVM
from hypercore.config import HostConfig
from hypercore.containerd.progress import ProgressCallback
from hypercore.inventory import Record
from hypercore.observed import Event, Usage
'''
INIT = """
    def __init__(self, portal: Portal, twin: {twin}) -> None:
        self._portal = portal
        self._async = twin
"""
CLIENT_LIFE = """
        self._portal = Portal()
        self._async = AsyncClient({arguments})

    def __enter__(self) -> Self:
        self._portal.open()
        try:
            self._portal.call(self._async.__aenter__())
        except BaseException:
            self._portal.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._portal.call(self._async.__aexit__(*exc_info))
        finally:
            self._portal.close()
"""
VM_LIFE = '''
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.discard()

    @property
    def id(self) -> str:
        """Its id; what was asked for, if the client did not spawn it."""
        return self._async.id

    @property
    def spawned(self) -> SpawnResult | None:
        """How it was spawned, if this client did."""
        return self._async.spawned

    @property
    def files(self) -> Files:
        return Files(self._portal, self._async.files)
'''


def main() -> None:
    text = HEAD
    for file, name in SOURCES:
        tree = ast.parse((CLIENT_DIR / file).read_text())
        found = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        text += f"\n\n{render(found)}"
    text = formatted(text)
    if "--check" in sys.argv:
        if TARGET.read_text() != text:
            raise SystemExit(f"out of date: {TARGET.name}")
        return
    TARGET.write_text(text)


def formatted(text: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "format", "--stdin-filename", TARGET, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def render(source: ast.ClassDef) -> str:
    name = source.name.removeprefix("Async")
    doc = (ast.get_docstring(source, clean=False) or "").replace("an async context", "a context")
    doc = doc.replace(", in one event loop", "")
    out = f'class {name}:\n    """{doc}"""\n'
    if name != "Client":
        out += INIT.format(twin=source.name)
    if name == "VM":
        out += VM_LIFE
    for node in source.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name == "__init__" and name == "Client":
            out += f"\n    def __init__({signature(node)}) -> None:"
            out += CLIENT_LIFE.format(arguments=arguments(node))
        elif not node.name.startswith("_") and not is_class_method(node):
            out += method(node)
    return out


def is_class_method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(d) == "classmethod" for d in node.decorator_list)


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.unparse(node.args)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    given = [arg.arg for arg in node.args.args if arg.arg != "self"]
    given += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    given += [f"{arg.arg}={arg.arg}" for arg in node.args.kwonlyargs]
    return ", ".join(given)


def method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = [ast.unparse(d) for d in node.decorator_list]
    result = ast.unparse(node.returns).strip("'\"") if node.returns else "None"
    doc = ast.get_docstring(node, clean=False)
    call = f"self._async.{node.name}({arguments(node)})"
    head = f"    def {node.name}({signature(node)})"
    body = f'        """{doc}"""\n' if doc else ""
    if "property" in decorators:
        return (
            f"\n    @property\n{head} -> {result}:\n{body}        return self._async.{node.name}\n"
        )
    inner = re.fullmatch(r"(?:AsyncIterator|AbstractAsyncContextManager)\[(.*)\]", result)
    is_context = "asynccontextmanager" in decorators or result.startswith("AbstractAsync")
    if is_context and inner:
        kind = inner[1]
        items = re.fullmatch(r"AsyncIterator\[(.*)\]", kind)
        shown = f"Iterator[{items[1]}]" if items else WRAPPED[kind]
        made = "self._portal.iterate(twin)" if items else f"{shown}(self._portal, twin)"
        return (
            f"\n    @contextmanager\n{head} -> Iterator[{shown}]:\n{body}"
            f"        with self._portal.entered({call}) as twin:\n            yield {made}\n"
        )
    if inner:
        made = f"self._portal.iterate({call})"
        return f"\n{head} -> Iterator[{inner[1]}]:\n{body}        return {made}\n"
    if result == "Spawning":
        body = body.replace("`await` it for an AsyncVM. As an async context manager it", "The VM")
        return (
            f"\n{head} -> VM:\n{body}        spawning = {call}\n"
            "        return VM(self._portal, self._portal.call(spawning.spawned()))\n"
        )
    if result in WRAPPED:
        made = f"{WRAPPED[result]}(self._portal, {call})"
        return f"\n{head} -> {WRAPPED[result]}:\n{body}        return {made}\n"
    if node.name == "spawn_result":
        return ""
    # A method that is called list hides the type in the class.
    result = result.replace("list[", "builtins.list[").replace("builtins.builtins.", "builtins.")
    return f"\n{head} -> {result}:\n{body}        return self._portal.call({call})\n"


if __name__ == "__main__":
    main()
