"""How the roll network that ships with the package is made: ``python -m isopose.phantom.roll OUT``."""
