"""What of a spawn's time is hypercore's own."""

from hypercore.phases import ours

ENGINE = {"resolve": 20.0, "image": 5.0, "task create": 3000.0, "task start": 100.0}


def test_waiting_for_others_is_not_ours() -> None:
    shim = {
        "root disks": 1.0,
        "probe": 2.0,
        "network": 3.0,
        "disks": 0.5,
        "vmm": 6.0,
        "configure": 1.5,
        "boot": 2500.0,
        "hello": 4.0,
        "total": 2520.0,
        "create": 30.0,
        "start": 40.0,
    }
    found = ours(ENGINE, 3090.0, shim)
    # Of the 2520 all but VMM, boot and hello; and the root disks, which come before them.
    assert found == {"engine": 35.0, "shim": 9.5, "total": 44.5}


def test_without_the_shim_servers_record() -> None:
    assert ours(ENGINE, 3100.0, {}) == {"engine": 25.0}
