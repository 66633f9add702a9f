"""The engine's part for unikernels: a container without an image, whose task is a whole microVM.

Without a snapshot, so that all there is to undo is the container and its task. What a task makes
of it is shim/unikernel_task.py's.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from hypercore import inventory, oci
from hypercore.containerd import containers, snapshots
from hypercore.containerd.client import Client
from hypercore.proto.types_pb import Mount
from hypercore.spec import MicroVMSpec, SpawnSpec, to_annotations

ROOT = {"path": "rootfs", "readonly": True}
"""containerd wants one named; nobody looks at it."""


async def create_container(
    client: Client,
    microvm_id: str,
    spec: SpawnSpec,
    *,
    stdin: bool,
    remove: bool,
    jail: bool,
    undo: AsyncExitStack,
) -> None:
    """Record the container; `undo` forgets it again."""
    undo.push_async_callback(containers.delete, client, microvm_id)
    kernel = str(spec.hardware.kernel_path)
    annotations = to_annotations(
        MicroVMSpec(
            microvm_id=microvm_id,
            provider=spec.provider,
            hardware=spec.hardware,
            network=spec.network,
            cmdline=spec.cmdline,
            jail=jail,
            unikernel=spec.unikernel,
        )
    )
    annotations[inventory.LABEL_OWNER] = inventory.OWNER
    if remove:
        annotations[inventory.LABEL_REMOVE] = "true"
    config: Mapping[str, object] = {
        "ociVersion": oci.OCI_VERSION,
        "process": {"args": [kernel], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": ROOT,
        "linux": {},
        "annotations": annotations,
    }
    labels = inventory.labels_for(
        name=spec.name,
        description=spec.description,
        provider=spec.provider,
        command=" ".join([kernel, *spec.cmdline.split()]),
        tty=False,
        stdin=stdin,
        remove=remove,
        stop_signal="",
    )
    await containers.create(
        client,
        microvm_id,
        image="",
        spec=config,
        snapshotter="",
        snapshot_key="",
        labels=labels,
    )


async def mounts_of(client: Client, microvm_id: str) -> Sequence[Mount]:
    """The mounts of a container's snapshot; none of one that has none."""
    container = await containers.get(client, microvm_id)
    return await snapshots.mounts(client, microvm_id) if container.snapshot_key else ()
