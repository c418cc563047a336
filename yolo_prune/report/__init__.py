"""The report: one HTML page that shows a pruned network beside its original, made from plain data."""
