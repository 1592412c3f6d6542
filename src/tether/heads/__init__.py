"""From features to values: property readouts, and forces and stress by derivative."""
