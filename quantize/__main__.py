"""`python -m tasktok_edge.quantize`."""

from tasktok_edge.cli import verb

if __name__ == "__main__":
    verb("quantize")()
