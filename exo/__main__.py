"""`python -m exo` is `exo`."""

from exo.cli import main

if __name__ == "__main__":
    main()
