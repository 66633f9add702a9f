"""What callers send → what the engine takes. Everything is checked here, nothing is done."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypercore import hac
from hypercore.api import checked_id
from hypercore.errors import InvalidArgument, PermissionDenied
from hypercore.proto import hypercore_pb as pb
from hypercore.serve.callers import Caller
from hypercore.signal_names import signal_number
from hypercore.spec import SpawnSpec
from hypercore.tomlfile import Table
from hypercore.wire import json

MAX_ARGUMENTS_BYTES = 128 * 1024
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_TABLES = ("spacecore", "hardware", "vm", "network", "workload")
_PATHS = {("hardware", "kernel"), ("hardware", "drive"), ("vm", "initrd"), ("network", "netns")}
_REMOTE = {
    "spacecore": {"name", "description"},
    "hardware": {"ref", "cores", "memory", "interface"},
    "vm": {"provider", "kind", "cmdline"},
    "network": {
        "mode", "interface", "dns", "search", "mtu", "ports", "name", "egress", "address",
        "gateway", "routes", "rate_limit",
    },
    "workload": {"command", "args", "env", "workdir", "user", "tty"},
    "limits": set(),
}  # fmt: skip
"""What remote callers may say: nothing that names a file, a namespace or a service of the host."""


def checked_key(text: str) -> str:
    if text and not _KEY.fullmatch(text):
        raise InvalidArgument(
            "an idempotency key must be 1 to 255 printable ASCII characters",
            field="idempotency_key",
        )
    return text


def checked_signal(text: str, default: int) -> int:
    try:
        return signal_number(text) if text else default
    except InvalidArgument as exc:
        raise InvalidArgument(exc.message[:200], hint=exc.hint, field="signal") from exc


def spawn_spec(request: pb.SpawnRequest, caller: Caller) -> SpawnSpec:
    """The spec a request describes, in hac.toml's words and by its rules. Reads files: blocks.

    Raises:
        InvalidArgument: naming the key.
        PermissionDenied: a remote caller names something of the host's.
    """
    document = _document(request)
    for table, values in document.items():
        if isinstance(values, dict):
            _check_table(table, values, caller)
        elif not caller.local:
            raise _local_only(table)
    spec = hac.from_document(Table(document, Path("request"), "", ()))
    if spec.name:
        checked_id(spec.name, "spacecore.name")
    words = (*spec.workload.command, *spec.workload.args, *spec.workload.env)
    if sum(map(len, words)) > MAX_ARGUMENTS_BYTES:
        raise InvalidArgument(
            f"the command and its environment are longer than {MAX_ARGUMENTS_BYTES} bytes",
            field="workload",
        )
    return spec


def _document(request: pb.SpawnRequest) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if request.hac:
        import tomli

        try:
            document = tomli.loads(request.hac)
        except tomli.TOMLDecodeError as exc:
            raise InvalidArgument(f"hac is not valid TOML: {exc}", field="hac") from exc
    for table in _TABLES:
        message = getattr(request, table)
        below = document.get(table, {})
        if message is not None and isinstance(below, dict):
            document[table] = {**below, **json.as_plain(message)}
    return document


def _check_table(table: str, values: Mapping[str, Any], caller: Caller) -> None:
    for key, value in values.items():
        if not caller.local and key not in _REMOTE.get(table, ()):
            raise _local_only(f"{table}.{key}")
        is_path = (table, key) in _PATHS
        if is_path and isinstance(value, str) and value and not value.startswith("/"):
            raise InvalidArgument(
                f"{table}.{key} = {value[:80]!r}: must be an absolute path", field=f"{table}.{key}"
            )


def _local_only(field: str) -> PermissionDenied:
    return PermissionDenied(
        f"{field[:80]}: only callers on this host, through the unix socket, may say this",
        hint="leave it out, or call from the host itself",
        field=field[:80],
    )
