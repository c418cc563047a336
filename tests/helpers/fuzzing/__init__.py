"""Fuzzing: hostile and broken inputs for every reader of the package, run in children that are watched.

    targets ──► Case (words, files, stdin, environment) ──► runner (a forked child, limits) ──► Outcome, Tally

`scripts/fuzz` and tests/fuzz run the same targets.
"""
