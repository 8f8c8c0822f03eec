"""Train the roll networks that ship with the package: ``python -m isopose.phantom.roll OUT``."""
