"""Volumes, poses, crops and the one place where images are resampled."""
