"""linux.cgroupsPath in its forms."""

import pytest

from hypercore.errors import InvalidArgument
from hypercore.shim.host_cgroup import path_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("/default/one", "default/one"),
        ("default//one/.", "default/one"),
        ("system.slice:docker:abc", "system.slice/docker-abc.scope"),
        (":cri:abc", "system.slice/cri-abc.scope"),
        ("a-b-c.slice:x:y", "a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
        ("-.slice::y", "y.scope"),
        ("a.slice::b.slice", "a.slice/b.slice"),
    ],
)
def test_where_it_is(given: str, expected: str) -> None:
    assert path_of(given) == expected


@pytest.mark.parametrize("bad", ["/a/../b", "..", "/a\nb"])
def test_paths_that_lead_out_are_refused(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroupsPath"):
        path_of(bad)
