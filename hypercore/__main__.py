"""`python -m hypercore` and the `hypercore` command."""

import sys


def main() -> None:
    try:
        from hypercore.cli import run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
