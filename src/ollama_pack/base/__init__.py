"""What every other part may use: sentences in the reader's language."""
