"""Cohorts on many machines with Ray: one result for each scan, on any storage that fsspec knows."""
