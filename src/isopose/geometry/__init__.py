"""Volumes, poses, crops, and resampling."""
