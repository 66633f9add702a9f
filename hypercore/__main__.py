"""`python -m hypercore` and the `hypercore` command."""

import sys


def main() -> None:
    from hypercore.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
