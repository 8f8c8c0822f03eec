"""Label maps as DICOM objects of the series that they were made from: SEG, RTSTRUCT and a report."""
