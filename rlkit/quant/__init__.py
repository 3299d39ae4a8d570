"""Number formats below 16 bits."""
