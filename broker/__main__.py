"""`python -m broker`, and the console script `broker`."""

from broker.cli import main

if __name__ == "__main__":
    main()
