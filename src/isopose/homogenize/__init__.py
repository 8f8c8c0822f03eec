"""In front of any other segmenter: scans brought to one pose and size, and answers brought back."""
