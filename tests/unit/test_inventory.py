"""Finding a microVM by what a user types, and what ps says of it."""

import pytest

from hypercore import inventory
from hypercore.errors import InvalidArgument, NotFound
from hypercore.inventory import Record, State
from hypercore.proto.types_pb import Timestamp

WEB = Record("aaaa1111-0000", "docker.io/library/nginx:1", State.RUNNING, 100.0, name="web")
WEB2 = Record("aaaa2222-0000", "docker.io/library/nginx:1", State.RUNNING, 200.0, name="web")
DB = Record(
    "bbbb0000-0000", "docker.io/library/pg:1", State.EXITED, 50.0, name="aaaa", exit_code=3
)
RECORDS = [WEB2, WEB, DB]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("aaaa1111-0000", WEB),
        ("aaaa1", WEB),
        ("b", DB),
        ("aaaa", DB),  # a name wins over a prefix
    ],
)
def test_select(wanted: str, found: Record) -> None:
    assert inventory.select(RECORDS, wanted) is found


@pytest.mark.parametrize("wanted", ["web", "aa"])
def test_an_ambiguous_one_is_listed(wanted: str) -> None:
    with pytest.raises(InvalidArgument, match="ambiguous: ") as caught:
        inventory.select(RECORDS, wanted)
    for record in (WEB, WEB2):
        assert record.microvm_id[:12] in str(caught.value)
    assert "bbbb" not in str(caught.value)


def test_one_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="no microVM 'cccc'"):
        inventory.select(RECORDS, "cccc")
    with pytest.raises(InvalidArgument, match="empty"):
        inventory.select(RECORDS, "")


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (21 * 86400, "3 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_age_in_docker_s_words(passed: float, text: str) -> None:
    assert inventory.age(1000.0, 1000.0 + passed) == text


def test_labels_carry_what_ps_shows_and_keep_containerds_limit() -> None:
    labels = inventory.labels_for(
        name="n",
        description="",
        provider="qemu",
        command="x" * 10_000,
        tty=True,
        stdin=False,
        remove=True,
        stop_signal="",
    )
    assert inventory.LABEL_DESCRIPTION not in labels
    assert labels[inventory.LABEL_OWNER] == inventory.OWNER
    assert labels[inventory.LABEL_STDIN] == "false"
    for key, value in labels.items():
        assert len(key) + len(value) <= inventory.MAX_LABEL_BYTES


def test_no_time_in_go_is_the_year_1() -> None:
    assert inventory.seconds(Timestamp(seconds=-62135596800)) == 0.0
    assert inventory.seconds(None) == 0.0
    assert inventory.seconds(Timestamp(seconds=5, nanos=500_000_000)) == 5.5
