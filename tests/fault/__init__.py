"""Faults against real processes: what is killed, cut off or lost must not change one byte of a bank.

`python -m fault --help` runs as many as you like; `test_faults.py` runs one of each kind.
"""
