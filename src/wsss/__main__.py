"""`python -m wsss` is the `wsss` command."""

from .cli.main import main

if __name__ == "__main__":
    main()
