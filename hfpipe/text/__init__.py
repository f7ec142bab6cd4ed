"""Text on its way to token ids and back: templates, tokenizing, incremental decoding, stop strings."""
