"""`python -m hypercore` and the `hypercore` command."""

import signal
import sys


def main() -> None:
    try:
        # The launcher holds Ctrl-C back until Python has started.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        from hypercore.cli import run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
