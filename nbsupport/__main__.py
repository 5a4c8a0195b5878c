"""`python -m nbsupport`: the command line."""

from nbsupport.cli import main

main(prog_name="nbsupport")
