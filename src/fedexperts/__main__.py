"""`python -m fedexperts` is `fedexperts`."""

from .cli import main

main()
