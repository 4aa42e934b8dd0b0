"""Changes of the source: the stream that tails it and the scan that walks it."""
