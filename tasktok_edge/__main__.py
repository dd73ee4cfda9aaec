"""`python -m tasktok_edge VERB`, the same as `tasktok-edge VERB`."""

from tasktok_edge.cli import main

if __name__ == "__main__":
    main()
