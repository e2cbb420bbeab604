"""``python -m tdecomp`` is the ``tdecomp`` command."""

from tdecomp.cli import main

if __name__ == "__main__":
    main()
