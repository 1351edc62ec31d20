"""What the demo shows, one module for each part of the pack."""
