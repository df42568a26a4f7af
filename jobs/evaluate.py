"""Compare predictions with references.

ray job submit --working-dir . -- python jobs/evaluate.py --predictions s3://bucket/predictions --reference_column target
"""

import os
import sys

# The repository in place of jobs/, whose tokenize.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
