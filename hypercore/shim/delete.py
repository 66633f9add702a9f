"""`containerd-shim-hypercore-v1 delete`: take back what a container left, without guest or server.

containerd runs it after every task's end, after a shim server's crash and at its own start, so it
is idempotent. The launcher answers by itself when the server noted that nothing is left
(records.write_deleted), else runs this file, without site; it never imports asyncio. Prints a
DeleteResponse and nothing else on stdout.
"""

import os
import sys

if not __package__:
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from hypercore import paths
from hypercore.proto.task_pb import DeleteResponse
from hypercore.proto.types_pb import Timestamp

KILLED = 137
OWNER_ANNOTATION = "io.hypercore.owner"
OWNER = "engine"


def flags(argv: list[str]) -> dict[str, str]:
    """containerd's flags, in Go's syntax, by name; the action is under the empty name."""
    found: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            found[""] = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        found[name] = value if equals or name == "debug" else next(words, "")
    return found


def delete(namespace: str, task_id: str, bundle: str) -> DeleteResponse:
    """Reclaim the microVM of this task; its data directory too, unless our engine owns it."""
    microvm_id = paths.microvm_id(namespace, task_id)
    where = paths.MicroVMPaths(microvm_id)
    response = DeleteResponse(exit_status=KILLED)
    if os.path.isdir(where.data):
        _read_exit(where, response)
    if os.path.isdir(where.run) or _holds_slot(microvm_id):
        from hypercore import reclaim

        reclaim.reclaim(microvm_id)
    if os.path.isdir(where.data) and not _is_owned(bundle):
        import shutil

        shutil.rmtree(where.data, ignore_errors=True)
    if response.exited_at is None:
        import time

        response.exited_at = Timestamp(seconds=int(time.time()))
    return response


def _holds_slot(microvm_id: str) -> bool:
    from hypercore import slots

    return microvm_id in slots.owners().values()


def _read_exit(where: paths.MicroVMPaths, response: DeleteResponse) -> None:
    """How the task ended, if its server lived to write it down."""
    import json

    try:
        record = json.loads(where.exit_record.read_bytes())
        response.exit_status = int(record["exit_status"])
        nanoseconds = int(record["exited_unix_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    response.exited_at = Timestamp(
        seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000
    )


def _is_owned(bundle: str) -> bool:
    """Whether our engine made the container; also when that cannot be told any more."""
    import json

    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            config = json.load(file)
        return (config.get("annotations") or {}).get(OWNER_ANNOTATION) == OWNER
    except (OSError, ValueError, AttributeError):
        # Disks and logs of a stranger are swept by `hypercore cleanup`; ours would be lost.
        return True


def main() -> None:
    given = flags(sys.argv[1:])
    if not given.get("namespace") or not given.get("id"):
        sys.exit("hypercore: delete: -id and -namespace are needed")
    bundle = given.get("bundle") or os.getcwd()
    from hypercore.errors import HypercoreError

    try:
        response = delete(given["namespace"], given["id"], bundle)
    except HypercoreError as exc:
        sys.exit(f"hypercore: {exc.message}")
    sys.stdout.buffer.write(response.encode())


if __name__ == "__main__":
    main()
