"""Answers that are kept, and one generation for many askers."""
