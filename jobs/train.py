"""Train a Transformer on token shards.

ray job submit --working-dir . -- python jobs/train.py --tokens_folder s3://bucket/tokens --out /shared/training
"""

import os
import sys

# The repository in place of jobs/, whose tokenize.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
