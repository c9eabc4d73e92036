"""What the layers of a trained network compute on data, and basis layers fitted to it."""
