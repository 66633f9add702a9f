"""The guest kernel's command line."""

import pytest

from hypercore import cmdline
from hypercore.errors import InvalidArgument


def test_keeps_order_and_puts_the_users_addition_last() -> None:
    line = cmdline.render(
        [("console", "ttyS0"), ("quiet", None), ("panic", "-1")], "panic=5  debug"
    )
    assert line == "console=ttyS0 quiet panic=-1 panic=5 debug"


def test_quotes_a_value_with_spaces() -> None:
    assert cmdline.render([("dyndbg", "file a.c +p")]) == 'dyndbg="file a.c +p"'


def test_keeps_the_users_quotes_together() -> None:
    assert cmdline.split('a="b c" d') == ['a="b c"', "d"]


@pytest.mark.parametrize(
    ("extra", "named"),
    [("a\nb", "control character"), ('a="b', "not closed"), ("a -- b", "'--'")],
)
def test_refuses_what_the_kernel_would_not_read_as_written(extra: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        cmdline.render([], extra)


def test_refuses_a_value_that_cannot_be_quoted() -> None:
    with pytest.raises(InvalidArgument, match="cannot be quoted"):
        cmdline.render([("a", 'say "hi"')])


def test_refuses_a_line_the_kernel_would_cut() -> None:
    cmdline.render([("a", "x" * (cmdline.MAX_BYTES - 2))])
    with pytest.raises(InvalidArgument, match="2048 bytes"):
        cmdline.render([("a", "x" * (cmdline.MAX_BYTES - 1))])
