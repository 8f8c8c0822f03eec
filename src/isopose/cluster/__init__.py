"""Process cohorts on many machines with Ray: one result per scan, on any storage that fsspec supports."""
