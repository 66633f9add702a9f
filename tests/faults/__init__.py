"""Make each system call of a Cython room fail, one at a time: see inject.c.

`python -m tests.faults NAME` runs one scenario under the preloaded library; test_faults.py runs
them all. A scenario is run once without faults to count its calls, then once for every call and
every errno that is chosen for it.
"""
