"""What a training step costs, and the benchmark."""
