"""Tokenize, train, predict and evaluate from one configuration.

ray job submit --working-dir . -- python jobs/run.py --config my.yaml --out /shared/mine
"""

import os
import sys

# The repository in place of jobs/, whose tokenize.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
