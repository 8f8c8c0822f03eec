"""From a scan to normalized slices: phantoms, fingerprint, foreground, preprocessing, the store."""
