"""`python -m soaprl` is the command line."""

from soaprl.cli import main

if __name__ == "__main__":
    main()
