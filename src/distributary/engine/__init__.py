"""The only loops, threads, retries and sleeps."""
