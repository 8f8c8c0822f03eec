"""From a scan to normalized slices: fingerprint, body mask, preprocessing, the store."""
