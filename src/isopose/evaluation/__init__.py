"""Scores of predictions against labels, in 3D per patient on the native grid."""
