"""Supermasks in Superposition for streams: the deterministic library under supsup-daemon.

Nothing here opens a socket, reads a clock or looks at the environment (data sets excepted, see `datasets`).
"""

__version__ = "0.1.0"
