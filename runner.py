"""The command line, runnable from a checkout: `python runner.py VERB`."""

from distributary.cli import main

if __name__ == "__main__":
    main()
