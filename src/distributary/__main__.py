"""`python -m distributary VERB`."""

from distributary.cli import main

if __name__ == "__main__":
    main()
