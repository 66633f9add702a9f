"""The guest kernel's command line: ordered, quoted, checked.

Which parameters a VMM needs is its provider's; this module only writes and reads them. Quoting is
the kernel's (lib/cmdline.c): double quotes keep spaces together and cannot themselves be escaped.
"""

from collections.abc import Iterable

from hypercore.errors import InvalidArgument

MAX_BYTES = 2047
"""COMMAND_LINE_SIZE of x86 and arm64 less its NUL; the kernel cuts off the rest in silence."""


def render(parameters: Iterable[tuple[str, str | None]], extra: str = "") -> str:
    """One line of `name` and `name=value`, in this order, then the user's `extra`.

    `extra` comes last because the kernel takes the last of two equal parameters.

    Raises:
        InvalidArgument: a value that cannot be written, or a line longer than the kernel reads.
    """
    words = [
        name if value is None else f"{name}={_quote(name, value)}" for name, value in parameters
    ]
    check_extra(extra)
    line = " ".join([*words, *split(extra)])
    if len(line.encode()) > MAX_BYTES:
        raise InvalidArgument(
            f"kernel command line of {len(line.encode())} bytes: the kernel reads {MAX_BYTES}",
            hint="shorten [vm] cmdline",
        )
    return line


def check_extra(extra: str) -> None:
    """Refuse a user's addition that would not reach the kernel as written."""
    if bad := next((c for c in extra if ord(c) < 0x20 or ord(c) == 0x7F), None):
        raise InvalidArgument(f"[vm] cmdline holds the control character {bad!r}")
    if extra.count('"') % 2:
        raise InvalidArgument(f"[vm] cmdline = {extra!r}: a double quote is not closed")
    if "--" in split(extra):
        raise InvalidArgument(
            "[vm] cmdline holds '--': what follows it would go to the agent",
            hint="leave out '--' and what follows it",
        )


def split(line: str) -> list[str]:
    """The parameters of `line`, quotes kept."""
    words: list[str] = []
    word = ""
    quoted = False
    for char in line:
        if char == " " and not quoted:
            if word:
                words.append(word)
            word = ""
            continue
        quoted ^= char == '"'
        word += char
    return [*words, word] if word else words


def _quote(name: str, value: str) -> str:
    if '"' in value or any(ord(c) < 0x20 for c in value):
        raise InvalidArgument(f"kernel parameter {name} = {value!r} cannot be quoted")
    return f'"{value}"' if " " in value else value
