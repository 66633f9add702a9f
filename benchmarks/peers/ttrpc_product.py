"""Our ttrpc server with a task in it that has no VM: answers State as the shim server does."""

import asyncio
import socket
import sys

import uvloop

from hypercore.errors import NotFound
from hypercore.proto import task_pb
from hypercore.shim.process import Process, State
from hypercore.wire.ttrpc import Server

TASK_ID = "benchmark-container-0001"
FIFOS = "/run/containerd/fifo/1/"


async def serve(path: str) -> None:
    bundle = f"/run/containerd/io.containerd.runtime.v2.task/default/{TASK_ID}"
    uris = (f"{FIFOS}stdin", f"{FIFOS}stdout", f"{FIFOS}stderr")
    init = Process(TASK_ID, "", bundle, uris, False)
    init.pid = 4242
    init.advance(State.RUNNING)
    tasks = {TASK_ID: init}

    def state(request: task_pb.StateRequest) -> bytes:
        found = tasks.get(request.id)
        if found is None:
            raise NotFound(f"task {request.id} does not exist")
        return found.state_reply()

    server = Server()
    server.add("containerd.task.v3.Task", task_pb.Task.METHODS, {"State": state})
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4096)
    await server.serve(listener)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
