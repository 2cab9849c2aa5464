"""Posts the newest submission to the contest's server; needs its network.

python submit.py --group NAME --url URL, or set the two names below (or VIZSLA_SUBMIT_URL).
"""

import os
import sys

from vizsla.cli.main import main

GROUP = "my group"
URL = os.environ.get("VIZSLA_SUBMIT_URL", "http://tatooine.disi.unitn.it:3001/retrieval/")

main(["submit", "submissions", "--data", "data", "--group", GROUP, "--url", URL, *sys.argv[1:]])
