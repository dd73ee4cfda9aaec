"""`python -m tasktok_edge.runtimes devices [BUNDLE]`."""

from tasktok_edge.runtimes.cli import main

if __name__ == "__main__":
    main()
