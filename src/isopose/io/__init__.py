"""Reading and writing scans, label maps and datasets; other conventions are converted here only."""
