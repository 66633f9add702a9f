"""Notices a guest that answers no more, so that nobody waits for its tasks' ends for ever.

A guest whose CPUs, agent or vsock device have stopped says nothing, and its VMM runs on. The bound
is generous: a busy host may starve a healthy guest for minutes. What a dead guest means is
microvm.py's and the shim's; here its connection is only closed, as if it had broken.
"""

import asyncio
from collections.abc import Callable

from hypercore.agent_client import AgentClient
from hypercore.errors import DeadlineExceeded, HypercoreError

INTERVAL_S = 60.0
SILENCE_S = 300.0
"""Without any answer for so long, a guest counts as dead."""


async def watch(
    agent: AgentClient, running: Callable[[], bool], note: Callable[[str], None]
) -> None:
    """Ask `agent` now and then whether it is there, until its connection ends.

    Args:
        running: whether an answer may be expected; a paused guest gives none.
        note: writes down why the connection was closed.
    """
    loop = asyncio.get_running_loop()
    heard = loop.time()
    while True:
        await asyncio.sleep(INTERVAL_S)
        if not running():
            heard = loop.time()
            continue
        try:
            await agent.ping()
        except DeadlineExceeded:
            if running() and loop.time() - heard >= SILENCE_S:
                note(f"the guest has not answered for {SILENCE_S:g} s: it counts as dead")
                agent.close()
                return
        except HypercoreError:  # the connection has ended
            return
        else:
            heard = loop.time()
