"""The reproduction of arXiv 2408.06024, made with the library one floor up."""
