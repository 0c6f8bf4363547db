"""What users hold and call."""
