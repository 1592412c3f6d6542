"""Task-specific models as outside reference lines: two that run here, and published figures."""
