"""The parts of `tests/device/check.py`, a module each with `run(report)`."""
