"""`python -m chan_rt` is `chan`, also where the shell does not find that."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="chan")
