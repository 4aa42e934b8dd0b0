"""The pure part: from documents to records, and from records to a plan. No I/O, clock, threads or logging."""
