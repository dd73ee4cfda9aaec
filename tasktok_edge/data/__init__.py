"""Scenes with labels, degradations, and the batches that training draws from them."""
