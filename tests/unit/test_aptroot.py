"""aptroot without the network: which mirrors it picks, what it refuses, what it leaves alone."""

import json
from pathlib import Path

import pytest

from hypercore import aptroot
from hypercore.errors import AlreadyExists, InvalidArgument


def quiet(_line: str) -> None:
    pass


def test_mirrors_come_from_one_line_and_deb822_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main\n"
        "deb http://other.example/cloud-sdk x main\n"
    )
    (tmp_path / "sources.list.d" / "security.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n"
    )
    assert aptroot.host_mirrors(tmp_path) == (
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    )


def test_a_host_of_another_distribution_gets_the_public_mirrors(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    assert aptroot.host_mirrors(tmp_path) == (
        aptroot.PUBLIC_MIRROR,
        aptroot.PUBLIC_SECURITY_MIRROR,
    )


def test_what_is_there_already_is_not_fetched_again(tmp_path: Path) -> None:
    record = {"suite": "bookworm", "wanted": ["a", "b"], "versions": {"a": "1", "b": "2"}}
    (tmp_path / aptroot.RECORD).write_text(json.dumps(record))
    aptroot.fetch(["b", "a"], suite="bookworm", into=tmp_path, progress=quiet)
    assert aptroot.versions(tmp_path) == {"a": "1", "b": "2"}
    with pytest.raises(AlreadyExists, match="packages c of bookworm"):
        aptroot.fetch(["c"], suite="bookworm", into=tmp_path, progress=quiet)


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(AlreadyExists):
        aptroot.fetch(["a"], suite="bookworm", into=tmp_path, progress=quiet)
    assert (tmp_path / "keep").read_text() == "mine"
    assert aptroot.versions(tmp_path) == {}


def test_a_suite_is_a_code_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="bookworm; rm"):
        aptroot.fetch(["a"], suite="bookworm; rm", into=tmp_path / "x", progress=quiet)
