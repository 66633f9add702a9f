"""config.json and process objects, from an image's config and a workload."""

import json
from typing import Any

import pytest

from hypercore import oci
from hypercore.errors import InvalidArgument
from hypercore.spec import WorkloadSpec

IMAGE: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Entrypoint": ["/entry"],
        "Cmd": ["serve", "--fast"],
        "Env": ["PATH=/opt/bin:/bin", "MODE=image"],
        "WorkingDir": "/srv",
        "User": "1000:100",
    },
}

USER = {"uid": 1000, "gid": 100, "additionalGids": [100]}


def render(image: dict[str, Any] = IMAGE, **workload: Any) -> dict[str, Any]:
    return oci.runtime_config(
        "ab12",
        image,
        WorkloadSpec(**workload),
        user=USER,
        hostname="ab12",
        annotations={"io.hypercore.provider": "qemu"},
    )


def test_the_image_decides_what_the_workload_does_not_say() -> None:
    process = render()["process"]
    assert process["args"] == ["/entry", "serve", "--fast"]
    assert process["env"] == ["PATH=/opt/bin:/bin", "HOSTNAME=ab12", "MODE=image"]
    assert process["cwd"] == "/srv"
    assert process["user"] == USER
    assert process["terminal"] is False


@pytest.mark.parametrize(
    ("workload", "args"),
    [
        ({"args": ("x",)}, ["/entry", "x"]),
        ({"command": ("sh",)}, ["sh"]),
        ({"command": ("sh",), "args": ("-c", "id")}, ["sh", "-c", "id"]),
    ],
)
def test_entrypoint_and_cmd_are_replaced_as_docker_does(
    workload: dict[str, Any], args: list[str]
) -> None:
    assert render(**workload)["process"]["args"] == args


def test_a_command_is_needed() -> None:
    with pytest.raises(InvalidArgument, match="the image names none"):
        render({"config": {"Entrypoint": None, "Cmd": None}})
    with pytest.raises(InvalidArgument, match="the image names none"):
        render({})
    assert render({}, args=("sh",))["process"]["args"] == ["sh"]


def test_the_workload_wins_over_the_image() -> None:
    workload = {"env": ("MODE=mine", "NEW=1"), "workdir": "/w", "tty": True}
    process = render(**workload)["process"]
    assert process["env"] == [
        "PATH=/opt/bin:/bin",
        "HOSTNAME=ab12",
        "TERM=xterm",
        "MODE=mine",
        "NEW=1",
    ]
    assert process["cwd"] == "/w"
    assert process["terminal"] is True


@pytest.mark.parametrize(
    ("image_user", "workload_user", "user"),
    [("", "", ""), ("www", "", "www"), ("www", "0", "0"), (None, "a:b", "a:b")],
)
def test_who_it_runs_as(image_user: str | None, workload_user: str, user: str) -> None:
    image = {"config": {"User": image_user}}
    assert oci.user_of(image, WorkloadSpec(user=workload_user)) == user
    assert oci.user_of({}, WorkloadSpec(user=workload_user)) == workload_user


def test_the_container_around_the_process() -> None:
    config = render()
    assert config["ociVersion"] == "1.0.2"
    assert config["root"] == {"path": "rootfs", "readonly": False}
    assert config["annotations"] == {"io.hypercore.provider": "qemu"}
    assert {"type": "network"} not in config["linux"]["namespaces"]
    devices = config["linux"]["resources"]["devices"]
    assert devices[0] == {"allow": False, "access": "rwm"}
    assert json.loads(json.dumps(config)) == config


def test_an_image_for_another_machine() -> None:
    with pytest.raises(InvalidArgument, match="built for s390x"):
        render({**IMAGE, "architecture": "s390x"})


def test_exec_inherits_from_init() -> None:
    init = render(tty=True)["process"]
    process = oci.exec_process(init, ["id"], env=["MODE=exec"])
    assert process["args"] == ["id"]
    assert process["terminal"] is False
    assert process["cwd"] == "/srv"
    assert process["user"]["uid"] == 1000
    assert process["capabilities"] == init["capabilities"]
    assert "MODE=exec" in process["env"]
    assert "MODE=image" not in process["env"]
    root = {"uid": 0, "gid": 0}
    other = oci.exec_process(init, ["id"], workdir="/", user=root, tty=True)
    assert (other["cwd"], other["user"]["uid"], other["terminal"]) == ("/", 0, True)
    assert init["args"] == ["/entry", "serve", "--fast"]
