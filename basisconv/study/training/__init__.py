"""One Run in, one Record out."""
