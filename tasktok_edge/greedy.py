"""`python -m tasktok_edge.greedy`."""

if __name__ == "__main__":
    from tasktok_edge.cli import verb

    verb("greedy")()
