"""`python -m cluster.cli` is the command `sparkpool`."""

from cluster.cli import main

main()
