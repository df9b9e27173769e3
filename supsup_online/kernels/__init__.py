"""Compiled inner loops over packed masks and scores; each has a plain twin that the tests hold it to."""
