"""No names for Python: _pump.pyx uses this module from C."""
