"""Suites: benchmarks of several comparisons, run by `tether bench`."""
