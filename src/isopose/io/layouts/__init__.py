"""One module per dataset layout; :func:`isopose.io.datasets.open_dataset` chooses among them."""
