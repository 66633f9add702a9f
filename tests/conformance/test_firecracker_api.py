"""What we send to Firecracker, against Firecracker's own definition of its API.

HYPERCORE_SPECS names a directory with its `firecracker.yaml` (src/firecracker/swagger/ in its
sources). Keys that the definition does not know are errors here, as they are to Firecracker.
"""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from hypercore.errors import VmmError
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import BootSpec, VmSnapshot
from hypercore.providers.firecracker import FirecrackerProvider, render_requests
from hypercore.spec import Disk, DiskLimits

FULL = BootSpec(
    microvm_id="vm1",
    cores=2,
    memory_mib=256,
    kernel_path=Path("/assets/vmlinux"),
    initrd_path=Path("/assets/initrd"),
    cmdline="console=ttyS0 quiet",
    disks=(
        Disk(Path("/assets/agent.erofs"), "hc0", read_only=True, fs_type="erofs"),
        Disk(Path("/vm/upper.ext4"), "hc1", read_only=False),
    ),
    guest_mac="02:00:00:00:00:01",
    tap_name="hc4",
    cid=7,
    control_port=10788,
    paths=MicroVMPaths("vm1"),
    jail=True,
)
LEAST = replace(FULL, initrd_path=None, disks=FULL.disks[:1], guest_mac="", tap_name="")
FULL = replace(FULL, disk_limits=DiskLimits(50, 1000), balloon_mib=64)
KEPT = VmSnapshot(Path("/kept/state"), Path("/kept/memory"))
CALLS: dict[str, tuple[object, ...]] = {
    "configure": (),
    "launch": (),
    "pause": (),
    "resume": (),
    "take_snapshot": (KEPT,),
    "restore": (),
    "set_disk_limits": (DiskLimits(ops_per_s=5),),
    "set_balloon": (32,),
    "press_power_button": (),
}


@pytest.fixture(scope="module")
def definition() -> dict[str, object]:
    directory = os.environ.get("HYPERCORE_SPECS")
    if not directory:
        pytest.skip("HYPERCORE_SPECS names no directory with firecracker.yaml")
    document: dict[str, object] = yaml.safe_load(
        (Path(directory) / "firecracker.yaml").read_text()
    )
    for schema in document["definitions"].values():  # type: ignore[attr-defined]
        if schema.get("type") == "object":
            schema["additionalProperties"] = False
    return document


def check(definition: dict[str, object], method: str, target: str, body: object) -> None:
    """Fail unless the API has this request and takes this body."""
    operation = _path(definition, target)[method.lower()]
    (schema,) = (p["schema"] for p in operation["parameters"] if p["in"] == "body")
    jsonschema.validate(body, {**schema, "definitions": definition["definitions"]})


def _path(definition: dict[str, object], target: str) -> dict[str, dict[str, list[object]]]:
    for template, operations in definition["paths"].items():  # type: ignore[attr-defined]
        wanted, given = template.split("/"), target.split("/")
        if len(wanted) == len(given) and all(
            w == g or w.startswith("{") for w, g in zip(wanted, given, strict=True)
        ):
            return operations
    raise AssertionError(f"the API has no {target}")


@pytest.mark.parametrize("boot", [FULL, LEAST], ids=["full", "least"])
def test_the_configuration(definition: dict[str, object], boot: BootSpec) -> None:
    for target, body in render_requests(boot):
        check(definition, "PUT", target, body)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, object]]:
    """The requests that were made of the API, none of which goes anywhere."""
    made: list[tuple[str, str, object]] = []

    async def request(_: Path, method: str, target: str, body: object, *, deadline: float) -> None:
        made.append((method, target, json.loads(json.dumps(body))))

    monkeypatch.setattr("hypercore.vmm_api.request", request)
    return made


@pytest.mark.parametrize("verb", CALLS)
def test_every_verb(
    definition: dict[str, object], api: list[tuple[str, str, object]], verb: str
) -> None:
    boot = replace(FULL, snapshot=KEPT)
    asyncio.run(getattr(FirecrackerProvider(), verb)(boot, *CALLS[verb], 0.0))
    assert api
    for method, target, body in api:
        check(definition, method, target, body)


def test_asking_for_metrics(
    definition: dict[str, object],
    api: list[tuple[str, str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    boot = replace(FULL, paths=MicroVMPaths("vm1"))
    boot.paths.vmm_dir.mkdir(parents=True)
    os.mkfifo(boot.paths.metrics_fifo)
    with pytest.raises(VmmError, match="metrics are no JSON"):  # nobody writes them
        asyncio.run(FirecrackerProvider().metrics(boot, 0.0))
    assert len(api) == 1
    check(definition, *api[0])


def test_the_check_itself_refuses(definition: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="additional"):
        check(definition, "PUT", "/vsock", {"guest_cid": 3, "uds_path": "/v", "port": 1})
    with pytest.raises(jsonschema.ValidationError, match="required"):
        check(definition, "PUT", "/vsock", {"guest_cid": 3})
    with pytest.raises(AssertionError, match="no /nonsense"):
        check(definition, "PUT", "/nonsense", {})
