"""Exit with status 0 if the server in this container is ready; the image's health check."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

try:
    urllib.request.urlopen(f"http://127.0.0.1:{os.environ.get('CHAN_PORT', '8000')}/readyz", timeout=4).close()
except (OSError, urllib.error.URLError) as error:
    sys.exit(f"not ready: {error}")
