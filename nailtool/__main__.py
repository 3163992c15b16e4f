"""``python -m nailtool``."""

from nailtool.cli import main

if __name__ == "__main__":
    main()
