"""The product's pump with the command line of the peers: MODE BUFFER COUNT BASE DIR."""

import os
import select
import sys

from hypercore._pump import Pump


def main() -> None:
    mode, _, count, base, directory = sys.argv[1:]
    pump = Pump()
    pump.start()
    for number in range(int(count)):
        guest = int(base) + number
        out = os.open(f"{directory}/out.{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if mode == "log":
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            log = os.open(f"{directory}/log.{number}", flags, 0o600)
            pump.add_client(pump.add_output(guest, log_fd=log), out, 0)
            continue
        if mode == "echo":
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            source = os.open(f"{directory}/in.{number}", flags)
            pump.add_source(pump.add_input(os.dup(guest)), source)
        pump.add_output(guest, dst_fd=out)
    print("ready", flush=True)
    select.select([], [], [])


if __name__ == "__main__":
    main()
