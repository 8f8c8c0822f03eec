"""Bring scans to one pose and size for any other segmenter, and restore its results."""
