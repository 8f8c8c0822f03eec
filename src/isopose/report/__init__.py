"""Tables, figures and HTML of evaluations, and the picture of the pipeline's steps."""
