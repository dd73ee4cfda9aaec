"""`python -m tasktok_edge.train`."""

from tasktok_edge.cli import verb

if __name__ == "__main__":
    verb("train")()
