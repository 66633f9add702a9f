"""What we send to Cloud Hypervisor, against its own definition of its API.

HYPERCORE_SPECS names a directory with its `cloud-hypervisor.yaml` (vmm/src/api/openapi/ in its
sources). Keys that the definition does not know are errors here: Cloud Hypervisor passes over them
and says nothing.
"""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from hypercore.paths import MicroVMPaths
from hypercore.providers.base import BootSpec
from hypercore.providers.cloud_hypervisor import CloudHypervisorProvider, render_vm
from hypercore.spec import Disk

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
    balloon_mib=64,
)
LEAST = replace(
    FULL,
    initrd_path=None,
    disks=FULL.disks[:1],
    guest_mac="",
    tap_name="",
    jail=False,
    balloon_mib=0,
)
BASE = "/api/v1"


@pytest.fixture(scope="module")
def definition() -> dict[str, object]:
    directory = os.environ.get("HYPERCORE_SPECS")
    if not directory:
        pytest.skip("HYPERCORE_SPECS names no directory with cloud-hypervisor.yaml")
    document: dict[str, object] = yaml.safe_load(
        (Path(directory) / "cloud-hypervisor.yaml").read_text()
    )
    for schema in document["components"]["schemas"].values():  # type: ignore[index]
        if schema.get("type") == "object" and "properties" in schema:
            schema["additionalProperties"] = False
    return document


def check(definition: dict[str, object], method: str, target: str, body: object) -> None:
    """Fail unless the API has this request and takes this body."""
    paths = definition["paths"]
    assert isinstance(paths, dict)
    assert target.removeprefix(BASE) in paths, f"the API has no {target}"
    operation = paths[target.removeprefix(BASE)][method.lower()]
    if "requestBody" not in operation:
        assert body is None, f"{target} takes no body"
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, {**schema, "components": definition["components"]})


@pytest.mark.parametrize("boot", [FULL, LEAST], ids=["full", "least"])
@pytest.mark.parametrize("use_landlock", [False, True], ids=["", "landlock"])
def test_the_vm(definition: dict[str, object], boot: BootSpec, use_landlock: bool) -> None:
    body = json.loads(json.dumps(render_vm(boot, use_landlock=use_landlock)))
    check(definition, "PUT", f"{BASE}/vm.create", body)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, object]]:
    """The requests that were made of the API, none of which goes anywhere."""
    made: list[tuple[str, str, object]] = []

    async def request(
        _: Path, method: str, target: str, body: object = None, *, deadline: float
    ) -> None:
        made.append((method, target, json.loads(json.dumps(body))))

    monkeypatch.setattr("hypercore.vmm_api.request", request)
    return made


@pytest.mark.parametrize(
    "verb", ["configure", "ask_to_stop", "pause", "resume", "press_power_button", "metrics"]
)
def test_every_verb(
    definition: dict[str, object], api: list[tuple[str, str, object]], verb: str
) -> None:
    asyncio.run(getattr(CloudHypervisorProvider(), verb)(FULL, 0.0))
    assert api
    for method, target, body in api:
        check(definition, method, target, body)


def test_the_balloon(definition: dict[str, object], api: list[tuple[str, str, object]]) -> None:
    asyncio.run(CloudHypervisorProvider().set_balloon(FULL, 32, 0.0))
    check(definition, *api[0])


def test_the_question_after_the_guests_end(
    definition: dict[str, object], api: list[tuple[str, str, object]]
) -> None:
    assert asyncio.run(CloudHypervisorProvider().confirm_end(FULL, "turned off", 0.0))
    check(definition, *api[0])


def test_the_check_itself_refuses(definition: dict[str, object]) -> None:
    vm = render_vm(LEAST, use_landlock=False)
    with pytest.raises(jsonschema.ValidationError, match="additional"):
        check(definition, "PUT", f"{BASE}/vm.create", {**vm, "nonsense": 1})
    with pytest.raises(jsonschema.ValidationError, match="required"):
        check(definition, "PUT", f"{BASE}/vm.create", {**vm, "cpus": {}})
    with pytest.raises(AssertionError, match="no /api/v1/nonsense"):
        check(definition, "PUT", f"{BASE}/nonsense", {})
