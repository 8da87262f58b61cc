"""`python -m kvactor` is `kvactor`.

The rule: an interrupt ends it in one line, also while its modules are being imported. Once a server is
ready, it hears the signals itself.
"""

import sys

#: The exit status after SIGINT.
INTERRUPTED = 130


def main() -> int:
    """Run the command; return the exit status."""
    try:
        from kvactor import cli  # noqa: PLC0415 (see the rule above)

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("kvactor: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
