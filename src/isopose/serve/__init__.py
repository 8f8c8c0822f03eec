"""Pages in a browser: predict scans and correct their course, review a finished cohort."""
