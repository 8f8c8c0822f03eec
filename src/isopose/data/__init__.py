"""From a scan to normalised slices: phantoms, fingerprint, foreground, preprocessing, the store."""
