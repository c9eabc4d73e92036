"""Many Runs: local processes, Ray, torchrun, and how they are stopped."""
