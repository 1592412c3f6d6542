"""Force-field labels for the auxiliary task: geometries, GFN2-xTB and pseudo-labels."""
