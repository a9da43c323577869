"""One log format for web processes and the job runner, on standard error."""

import logging


def configure_logging(level: str) -> None:
    """Log from `level` on; libraries that log request bodies or every call stay quiet."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    # label_studio_ml writes bodies and access tokens at DEBUG, httpx every URL at INFO.
    for name in ("label_studio_ml", "httpx", "httpcore", "werkzeug", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
