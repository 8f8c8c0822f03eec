"""``isopose study``: the paper's experiment on anyone's data, arm by arm, and its tables."""
