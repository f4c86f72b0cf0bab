"""Propagation over a vocabulary, and the graph pattern loss: python -m benchmarks.graph."""

from benchmarks.suite import main

if __name__ == "__main__":
    main("chebyshev,graph_pattern")
