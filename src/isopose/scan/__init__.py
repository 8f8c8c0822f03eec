"""From the poses of slices to the pose of a scan: aggregation, confidence, corrections, warnings."""
