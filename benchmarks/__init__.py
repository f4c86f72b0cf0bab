"""Measurements: each writes JSON lines into results/, from which BENCHMARKS.md is made."""
