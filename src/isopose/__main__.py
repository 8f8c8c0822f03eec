"""``python -m isopose``."""

from isopose.cli import main

main()
