"""OCI hooks that run on the host, as real programs."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from hypercore.errors import DeadlineExceeded, HypercoreError
from hypercore.shim import hooks

STATE = {"id": "one", "status": "creating", "annotations": {"a": "x" * 200_000}}


def parsed(kind: str, script: str, **more: object) -> tuple[hooks.Hook, ...]:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], **more}
    return hooks.parse({kind: [hook]})


def test_a_hook_gets_the_state_and_its_own_environment(tmp_path: Path) -> None:
    script = f"cat >{tmp_path}/state; env >{tmp_path}/env"
    made = parsed("prestart", script, env=["ONLY=this=one"])
    asyncio.run(hooks.run(made, hooks.BEFORE_CREATE, STATE))
    assert json.loads((tmp_path / "state").read_text()) == STATE
    assert "ONLY=this=one" in (tmp_path / "env").read_text()
    assert "HOME" not in (tmp_path / "env").read_text()


def test_only_the_kinds_asked_for_run(tmp_path: Path) -> None:
    made = parsed("poststop", f"touch {tmp_path}/ran")
    asyncio.run(hooks.run(made, hooks.BEFORE_CREATE, STATE))
    assert not (tmp_path / "ran").exists()


def test_failures_are_told(tmp_path: Path) -> None:
    made = hooks.parse(
        {
            "createRuntime": [
                {"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 7"]},
                {"path": "/bin/touch", "args": ["touch", str(tmp_path / "later")]},
            ]
        }
    )
    with pytest.raises(
        HypercoreError, match="createRuntime hook /bin/sh ended with status 7: why"
    ):
        asyncio.run(hooks.run(made, hooks.BEFORE_CREATE, STATE))
    assert not (tmp_path / "later").exists()
    asyncio.run(hooks.run_all(made, hooks.BEFORE_CREATE, STATE))
    assert (tmp_path / "later").exists()
    with pytest.raises(HypercoreError, match="/nosuch"):
        asyncio.run(hooks.run(hooks.parse({"prestart": [{"path": "/nosuch"}]}), ["prestart"], {}))


def test_a_hook_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    made = parsed("prestart", f"echo $$ >{tmp_path}/pid; exec sleep 1000", timeout=1)
    with pytest.raises(DeadlineExceeded, match="longer than 1 s"):
        asyncio.run(hooks.run(made, hooks.BEFORE_CREATE, STATE))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
