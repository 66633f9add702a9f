"""TOML files read strictly: types are checked, unknown keys are errors with file and line.

Knows nothing of what the keys mean: hac.py and config.py do. The parser gives no line numbers, so
an error finds its line by scanning the text again; that costs nothing until there is an error.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hypercore.errors import InvalidArgument, NotFound, PermissionDenied, from_os_error

_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+?)\s*=""")


def load(path: Path) -> "Table":
    """Parse the file at `path`.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it is a directory, not UTF-8 or not TOML.
    """
    import tomli

    try:
        text = path.read_bytes().decode()
    except FileNotFoundError as exc:
        raise NotFound(f"{path}: no such file") from exc
    except IsADirectoryError as exc:
        raise InvalidArgument(f"{path}: is a directory, not a file") from exc
    except PermissionError as exc:
        raise PermissionDenied(f"{path}: not readable", hint="run as root") from exc
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{path}: not UTF-8 at byte {exc.start}") from exc
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as exc:
        raise InvalidArgument(f"{path}: not valid TOML: {exc}") from exc
    return Table(values, path, text, ())


class Table:
    """One table being read. Getters check types; `finish` refuses what no getter asked for.

    The keys that were asked for are the known ones, so that there is no second list to keep.
    """

    def __init__(
        self, values: Mapping[str, Any], path: Path, text: str, place: tuple[str | int, ...]
    ) -> None:
        self._values = values
        self._path = path
        self._text = text
        self._place = place
        self._known: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def is_text(self, key: str) -> bool:
        """Whether `key` has a string, for keys that may also be something else."""
        return isinstance(self._values.get(key), str)

    def keys(self) -> list[str]:
        return list(self._values)

    def where(self, key: str = "") -> str:
        """`file:line: [table] key`, as errors begin."""
        place = (*self._place, key) if key else self._place
        line = find_line(self._text, place)
        table = ".".join(part for part in self._place if isinstance(part, str))
        label = " ".join(part for part in (f"[{table}]" if table else "", key) if part)
        return f"{self._path}:{line}: {label}" if line else f"{self._path}: {label}"

    def fail(self, key: str, problem: str, *, hint: str = "") -> NoReturn:
        """Raise InvalidArgument naming file, line, key, its value and the `problem`."""
        value = f" = {_shown(self._values[key])}" if key in self._values else ""
        raise InvalidArgument(
            f"{self.where(key)}{value}: {problem}", hint=hint, field=self._field(key)
        )

    def _field(self, key: str) -> str:
        return ".".join(str(part) for part in (*self._place, key))

    def text(self, key: str, default: str = "") -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            self.fail(key, f"must be a string, not {_type_name(value)}")
        if "\0" in value or "\n" in value:
            self.fail(key, "must be one line of text")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(key, default)
        if value not in choices and not (value == default and key not in self._values):
            self.fail(key, "must be one of " + ", ".join(choices), hint=nearest(value, choices))
        return value

    def integer(self, key: str, default: int, *, least: int, most: int, unit: str = "") -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(key, f"must be a whole number, not {_type_name(value)}")
        if not least <= value <= most:
            span = f"must be {least} to {most}" + (f" {unit}" if unit else "")
            self.fail(key, span if value > most else f"{span}, {least} at the least")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, not {_type_name(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, "must be a list of strings")
        if any("\0" in item for item in value):
            self.fail(key, "must not contain NUL")
        return tuple(value)

    def path(self, key: str) -> Path | None:
        """A path, relative to the file's directory; None when absent or empty."""
        value = self.text(key)
        return self.resolve(value) if value else None

    def resolve(self, value: str) -> Path:
        """A path as one written in the file is meant."""
        return (self._path.parent / value).absolute()

    def table(self, key: str) -> "Table":
        value = self._take(key, {})
        if not isinstance(value, dict):
            self.fail(key, f"must be a table, written [{key}], not {_type_name(value)}")
        return Table(value, self._path, self._text, (*self._place, key))

    def _take(self, key: str, default: Any) -> Any:
        self._known[key] = None
        return self._values.get(key, default)

    def finish(self) -> None:
        """Raise InvalidArgument for the first key that no getter asked for."""
        for key, value in self._values.items():
            if key in self._known:
                continue
            known = tuple(self._known)
            is_table = isinstance(value, dict) or (
                isinstance(value, list) and bool(value) and isinstance(value[0], dict)
            )
            what = "unknown table" if is_table and not self._place else "unknown key"
            raise InvalidArgument(
                f"{self.where(key)}: {what}",
                hint=nearest(key, known) or "known here: " + ", ".join(known),
                field=self._field(key),
            )


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A "did you mean" sentence, or an empty string when nothing is near."""
    import difflib

    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else ""


def find_line(text: str, place: tuple[str | int, ...]) -> int:
    """The line (from 1) where `place`, a path of tables and a key, is written; 0 if not found.

    Falls back to the nearest enclosing table for keys inside inline tables and arrays.
    """
    wanted = tuple(part for part in place if isinstance(part, str))
    best, best_depth = 0, 0
    header: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := _HEADER.match(line):
            header = here = _split_key(match[1])
        elif match := _KEY.match(line):
            here = header + _split_key(match[1])
        else:
            continue
        depth = len(here)
        if depth > best_depth and here == wanted[:depth]:
            best, best_depth = number, depth
    return best


def _split_key(text: str) -> tuple[str, ...]:
    parts = re.findall(r""""[^"]*"|'[^']*'|[A-Za-z0-9_-]+""", text)
    return tuple(part.strip("\"'") for part in parts)


def _type_name(value: object) -> str:
    names = {str: "a string", bool: "true or false", int: "a whole number", float: "a fraction"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = f'"{value}"' if value.isprintable() else repr(value)
    else:
        shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
