"""Benchmarks of xinf, and of xinf beside other gateways. README.md is rendered from results/, see render.py.

`bench_<question>.py` answers one question each: as a program, or under `pytest benchmarks --benchmark-only` where it
has test functions. Nothing here is imported by xinf.
"""
