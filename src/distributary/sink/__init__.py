"""Where a plan is written; returns only when it is durable."""
