"""`tasktok-edge train`: makes the shipped model again from nothing."""
