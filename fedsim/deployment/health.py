"""Whether the service in this container answers: the image's health check.

    python -m fedsim.deployment.health

It asks ``FEDSIM_HEALTH``. A certificate is not looked at: this is the same container, and what is
asked is whether somebody is at home. An empty variable, of a service that listens nowhere, is well.
"""

from __future__ import annotations

import os
import ssl
import sys
from urllib.error import URLError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener


def main() -> None:
    """Exit with 0 if it is well, and 1 otherwise."""
    url = os.environ.get("FEDSIM_HEALTH", "")
    if not url:
        return
    opener = build_opener(
        ProxyHandler({}),  # no proxy knows this container's loopback
        HTTPSHandler(context=ssl._create_unverified_context()),
    )
    try:
        with opener.open(url, timeout=4):
            return
    except (URLError, OSError) as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
