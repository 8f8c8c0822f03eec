"""Targets, losses, stages and the loop that trains them one after the other."""
