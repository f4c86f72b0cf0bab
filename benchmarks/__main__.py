"""`python -m benchmarks --suite=cpu`: see `benchmarks.suite`."""

from benchmarks.suite import main

main()
