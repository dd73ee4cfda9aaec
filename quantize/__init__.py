"""Server checkpoint in, edge checkpoint out."""
