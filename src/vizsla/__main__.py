"""`python -m vizsla`: the command line."""

from vizsla.cli.main import main

if __name__ == "__main__":
    main()
