"""``python -m rq_pooled`` and the command ``rq-pooled``."""

import os
import sys


def main() -> None:
    """Run the command line and exit; a prefix of keys that RQ refuses while it is imported is refused in one line."""
    try:
        from .cli.main import main as run
    except ValueError as error:
        if "RQ_KEY_PREFIX" not in str(error):
            raise
        prefix = os.environ.get("RQ_KEY_PREFIX", "")
        allowed = "letters, digits and _ . : - { } only, at least one: write a name, as 'app', or unset it"
        print(f"rq-pooled: RQ_KEY_PREFIX is {prefix!r}, and rq allows {allowed}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
