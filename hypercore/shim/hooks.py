"""OCI hooks that run on the host: prestart, createRuntime, poststart and poststop.

startContainer runs in the guest, by crun, in the container. createContainer is a program of the
host in the container's namespaces, which a guest cannot have; guest_spec.py refuses it.
"""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypercore import _process
from hypercore.errors import DeadlineExceeded, HypercoreError, InvalidArgument, from_os_error

logger = logging.getLogger(__name__)

BEFORE_CREATE = ("prestart", "createRuntime")
AFTER_START = ("poststart",)
AFTER_STOP = ("poststop",)
ON_HOST = (*BEFORE_CREATE, *AFTER_START, *AFTER_STOP)
DEADLINE_S = 60.0
"""Of a hook that names none."""
MAX_WORDS = 2000
"""Characters of a failed hook's output that are told."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One program; `kind` is its list in config.json."""

    kind: str
    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    timeout_s: float


def parse(hooks: Mapping[str, Any]) -> tuple[Hook, ...]:
    """The hooks for the host, in the order of ON_HOST.

    Raises:
        InvalidArgument: one of them is no hook; names it.
    """
    return tuple(
        _parse(kind, number, given)
        for kind in ON_HOST
        for number, given in enumerate(hooks.get(kind) or ())
    )


def _parse(kind: str, number: int, given: Mapping[str, Any]) -> Hook:
    where = f"config.json: hooks.{kind}[{number}]"
    path = given.get("path")
    if not isinstance(path, str) or not os.path.isabs(path):
        raise InvalidArgument(f"{where}: path {path!r} is not absolute")
    timeout = given.get("timeout")
    if timeout is not None and (not isinstance(timeout, int) or timeout <= 0):
        raise InvalidArgument(f"{where}: timeout {timeout!r} is no number of seconds")
    args, env = (tuple(given.get(name) or ()) for name in ("args", "env"))
    if not all(isinstance(text, str) and "\0" not in text for text in (*args, *env)):
        raise InvalidArgument(f"{where}: args and env are lists of texts")
    return Hook(kind, path, args or (path,), env, float(timeout or DEADLINE_S))


async def run(hooks: Sequence[Hook], kinds: Sequence[str], state: Mapping[str, object]) -> None:
    """Run the hooks of `kinds`, one after the other, each with the state on its stdin.

    Raises:
        HypercoreError: one failed; the rest are not run.
    """
    for hook in hooks:
        if hook.kind in kinds:
            await _run(hook, json.dumps(state).encode())


async def run_all(
    hooks: Sequence[Hook], kinds: Sequence[str], state: Mapping[str, object]
) -> None:
    """As `run`, for hooks whose failures change nothing: they are logged."""
    for hook in hooks:
        if hook.kind in kinds:
            try:
                await _run(hook, json.dumps(state).encode())
            except HypercoreError as exc:
                logger.warning("%s", exc)


async def _run(hook: Hook, state: bytes) -> None:
    stdin, output = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("state", "output"))
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        try:
            _pid, pidfd = _process.spawn(
                _argv(hook),
                env=dict(pair.split("=", 1) for pair in hook.env if "=" in pair),
                fds=[(stdin, 0), (output, 1), (output, 2)],
                drop_capabilities=False,
                no_new_privs=False,
                umask=0o022,
            )
        except OSError as exc:
            raise from_os_error(exc, f"run the {hook.kind} hook {hook.path}") from exc
        try:
            status = await _ended(hook, pidfd)
        finally:
            os.close(pidfd)
        if status:
            words = os.pread(output, 1 << 20, 0)[-MAX_WORDS:].decode(errors="replace").strip()
            how = f"status {status}" if status > 0 else f"signal {-status}"
            raise HypercoreError(f"the {hook.kind} hook {hook.path} ended with {how}: {words}")
    finally:
        os.close(stdin)
        os.close(output)


def _argv(hook: Hook) -> list[str]:
    """Programs are started by their path, so that stands for args[0]."""
    return [hook.path, *hook.args[1:]]


async def _ended(hook: Hook, pidfd: int) -> int:
    """Its exit code, or minus its signal. A hook that takes too long is killed."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        try:
            async with asyncio.timeout(hook.timeout_s):
                await ended.wait()
        except BaseException as exc:
            _process.send_signal(pidfd, signal.SIGKILL)
            await ended.wait()
            _process.reap(pidfd)
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded(
                    f"the {hook.kind} hook {hook.path} took longer than {hook.timeout_s:g} s"
                ) from exc
            raise
    finally:
        loop.remove_reader(pidfd)
    return _process.reap(pidfd) or 0
