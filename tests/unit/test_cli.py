"""The command line without a host: parsing, errors, exit codes, and how little it imports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import hypercore
from hypercore import cli, signal_names
from hypercore.cli import spawn, terminal
from hypercore.cli.progress import size_text
from hypercore.errors import (
    HypercoreError,
    InvalidArgument,
    NotFound,
    TaskError,
    VmmError,
)
from hypercore.spec import SpawnSpec
from hypercore.task_errors import from_start

HEAVY = ("grpc", "asyncio", "pyroute2", "uvloop")


def run(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(args)
    out, err = capsys.readouterr()
    return code, out, err


def options(group: click.Group) -> set[str]:
    """All long flags of a group's commands, and its own."""
    ctx = click.Context(group)
    found = {name for p in group.params for name in (*p.opts, *p.secondary_opts)}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= options(command)
        else:
            found |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return found


def test_the_page_names_every_verb_and_no_flag_that_is_not_there() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert [verb for verb in cli._VERBS if not re.search(rf"`{verb}\b", text)] == []
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert mentioned - options(cli.root) == {"--help"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)
    assert code == 0
    for verb in cli._VERBS:
        assert f"  {verb} " in out
        assert run(verb, "--help", capsys=capsys)[0] == 0


@pytest.mark.parametrize("args", [("--help",), ("spec", "check", "{hac}"), ("spawn", "--help")])
def test_light_verbs_import_nothing_heavy(tmp_path: Path, args: tuple[str, ...]) -> None:
    hac = tmp_path / "hac.toml"
    hac.write_text('[hardware]\nref = "alpine"\n')
    code = (
        "import sys\n"
        "from hypercore.cli import run\n"
        "code = run(sys.argv[1:])\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {found}' if found else code)\n"
    )
    argv = [sys.executable, "-c", code, *(arg.format(hac=hac) for arg in args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("spwn",), 64, ("no verb 'spwn'", "'spawn'", "hypercore --help")),
        (("list", "--nosuch"), 64, ("--nosuch", "hypercore list --help")),
        (("inspect",), 64, ("ID...",)),
        (("--format", "yaml", "list"), 64, ("yaml", "json")),
        (("kill", "-s", "NOPE", "x"), 64, ("'NOPE'", "TERM")),
        (("attach", "--detach-keys", "ctrl-1", "x"), 64, ("'ctrl-1'",)),
        (("cleanup", "--all", "x"), 64, ("not both",)),
        (("spec", "check", "/nowhere/hac.toml"), 66, ("/nowhere/hac.toml", "no such file")),
        (("logs", "-f", "--source", "vmm", "x"), 64, ("--follow",)),
    ],
)
def test_mistakes(
    args: tuple[str, ...], code: int, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(*args, capsys=capsys)
    assert found == code, err
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()][:1] == ["hypercore"]
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("exc", "code", "text"),
    [
        (NotFound("a\nb", hint="c"), 66, "hypercore: a b\nhint: c\n"),
        (VmmError("died", detail="last\nwords"), 125, "hypercore: died\nlast\nwords\n"),
        (
            VmmError("\x1b]2;x\x07", detail="\x1b[2J\t"),
            125,
            "hypercore: \ufffd]2;x\ufffd\n\ufffd[2J\t\n",
        ),
        (TaskError("no", exit_code=127), 127, "hypercore: no\n"),
        (KeyboardInterrupt(), 130, "hypercore: interrupted\n"),
        (click.exceptions.Exit(3), 3, ""),
    ],
)
def test_errors_are_one_line_and_a_hint(
    exc: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.report(exc, debug=False) == code
    assert capsys.readouterr().err == text


def test_an_unexpected_error_shows_its_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert cli.report(caught.value, debug=False) == 125
    assert "Traceback" not in capsys.readouterr().err
    assert cli.report(caught.value, debug=True) == 125
    assert "Traceback" in capsys.readouterr().err


class TestSpawnArguments:
    """What of `spawn REF CMD…` is which."""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def parse(self, *args: str) -> SpawnSpec:
        with spawn.spawn_command.make_context("spawn", list(args)) as ctx:
            arguments = ctx.params["arguments"]
            return spawn._spec(arguments, ctx.params["hac_file"], no_ref=ctx.meta["no_ref"])

    def test_reference_and_command(self) -> None:
        spec = self.parse("--rm", "alpine", "sh", "-c", "exit 3")
        assert (spec.ref, spec.workload.args) == ("alpine", ("sh", "-c", "exit 3"))
        assert self.parse("alpine", "--", "ls", "--").workload.args == ("ls", "--")
        assert self.parse("alpine").workload.args == ()

    def test_command_alone_takes_the_file_s_image(self, tmp_path: Path) -> None:
        (tmp_path / "hac.toml").write_text('[hardware]\nref = "busybox"\ncores = 2\n')
        spec = self.parse("--", "sh", "-i")
        assert (spec.ref, spec.workload.args) == ("busybox", ("sh", "-i"))
        assert self.parse("--rm").ref == "busybox"

    def test_reference_wins_over_the_file_s(self, tmp_path: Path) -> None:
        (tmp_path / "hac.toml").write_text('[hardware]\nref = "busybox"\ncores = 2\n')
        spec = self.parse("alpine")
        assert (spec.ref, spec.hardware.cores) == ("alpine", 2)

    def test_nothing_at_all(self) -> None:
        with pytest.raises(InvalidArgument, match=r"no \./hac.toml"):
            self.parse()

    def test_a_named_file_must_be_there(self) -> None:
        with pytest.raises(NotFound, match=r"other\.toml"):
            self.parse("--hac", "other.toml", "alpine")

    def test_what_is_no_reference(self) -> None:
        with pytest.raises(InvalidArgument, match="'UPPER'"):
            self.parse("UPPER")


def test_environment_takes_our_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert spawn.environment(["A=b", "OURS", "NOT_SET"]) == ["A=b", "OURS=1"]
    with pytest.raises(InvalidArgument, match="-e =x"):
        spawn.environment(["=x"])


def test_detach_keys() -> None:
    assert terminal.parse_detach_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert terminal.parse_detach_keys("ctrl-a,d") == b"\x01d"
    assert terminal.parse_detach_keys("") == b""


@pytest.mark.parametrize(
    ("typed", "passed", "complete"),
    [
        ([b"ls\n"], b"ls\n", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_filter(typed: list[bytes], passed: bytes, complete: bool) -> None:
    keys = terminal.DetachFilter(b"\x10\x11")
    results = [keys.feed(data) for data in typed]
    assert b"".join(data for data, _ in results) == passed
    assert results[-1][1] is complete


@pytest.mark.parametrize(
    ("text", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("Hup", 1), ("SIGUSR1", 10)]
)
def test_signal_names(text: str, number: int) -> None:
    assert signal_names.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "-9", "65", "KILLALL", "SIG_IGN", "SIG"])
def test_no_signal_names(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no signal"):
        signal_names.signal_number(text)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            "containerd: executable file `nosuch` not found in $PATH: No such file or directory",
            127,
        ),
        ('exec: "/x": stat /x: no such file or directory: unknown', 127),
        ("open executable: Permission denied", 126),
        ("exec /etc/passwd: exec format error", 126),
    ],
)
def test_a_command_that_cannot_run_has_docker_s_exit_code(message: str, code: int) -> None:
    error = from_start(HypercoreError(message))
    assert isinstance(error, TaskError)
    assert error.exit_code == code


def test_other_failures_of_a_start_stay_what_they_are() -> None:
    error = VmmError("the guest did not come up: no such file or directory")
    assert from_start(error) is error


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 999, 1500, 2_000_000, 3_210_000_000)] == [
        "0B",
        "999B",
        "1.5kB",
        "2MB",
        "3.21GB",
    ]


def test_version_is_the_project_s(capsys: pytest.CaptureFixture[str]) -> None:
    import tomli

    project = tomli.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert hypercore.__version__ == project["version"]
    code, out, _ = run("version", "--format", "json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["hypercore"] == hypercore.__version__
