"""The shim server's own log, and the copy of a task's lines for containerd's log.

containerd reads a FIFO in the bundle. It may be away or slow: lines are dropped then, never
waited for.
"""

import errno
import logging
import os
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 4 * 1024 * 1024
BACKUPS = 2
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ServerLog(RotatingFileHandler):
    """The log file; stdout and stderr, where a crash would print, follow it when it rotates."""

    def doRollover(self) -> None:
        super().doRollover()
        if self.stream is not None:
            for fd in (1, 2):
                os.dup2(self.stream.fileno(), fd)


class BundleLog(logging.Handler):
    """Copies records that name a `bundle` to the FIFO `log` in it."""

    def emit(self, record: logging.LogRecord) -> None:
        bundle = getattr(record, "bundle", "")
        if not bundle:
            return
        try:
            # A read end of our own: no SIGPIPE, and no wait for containerd to open its.
            fd = os.open(os.path.join(bundle, "log"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # no such FIFO: some clients make none
        try:
            os.write(fd, self.line(record).encode(errors="replace"))
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EPIPE):
                raise
        finally:
            os.close(fd)

    def line(self, record: logging.LogRecord) -> str:
        """As logrus writes it, like everything else in containerd's log."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = record.getMessage().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        level = "warning" if record.levelno == logging.WARNING else record.levelname.lower()
        return f'time="{when}" level={level} msg="{text}" runtime=io.containerd.hypercore.v1\n'


def set_up(path: Path, *, debug: bool) -> None:
    server_log = ServerLog(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)
    server_log.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.addHandler(server_log)
    root.addHandler(BundleLog())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
