"""The report of a comparison or a run: one HTML file, made from the folder's files alone."""
