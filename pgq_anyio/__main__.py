"""``python -m pgq_anyio`` is the command ``pgq-anyio``."""

from ._cli import main

if __name__ == "__main__":
    main()
