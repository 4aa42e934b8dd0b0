"""What survives a restart: checkpoints, the lease, jobs and dead letters."""
