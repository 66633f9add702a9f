"""The guest's PID 1. Compiled into one static ELF by build.py; hypercore/ never imports it.

Runs on a bare interpreter without the standard library: only built-in modules (posix, _socket,
select, fcntl, time, ...) may be imported.
"""
