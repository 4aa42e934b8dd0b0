"""One-shot work made of the same parts."""
