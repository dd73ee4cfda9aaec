"""`python -m tasktok_edge.export`."""

from tasktok_edge.cli import verb

if __name__ == "__main__":
    verb("export")()
