"""Data sets as tensors, the packs that they come in, and where these are found."""
