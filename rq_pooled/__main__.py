"""``python -m rq_pooled`` is ``rq-pooled``."""

from .cli.main import main

if __name__ == "__main__":
    main()
