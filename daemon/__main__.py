"""`python -m daemon` is `supsup-daemon`."""

from daemon.cli import main

if __name__ == "__main__":
    main()
