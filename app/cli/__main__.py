"""`python -P -m app.cli`: the same as the installed `forecache`."""

from app.cli import main

if __name__ == "__main__":
    main()
