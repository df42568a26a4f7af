"""Read a corpus, train a tokenizer and write token shards.

ray job submit --working-dir . -- python jobs/tokenize.py --corpus.train s3://bucket/train.parquet --out s3://bucket/tokens
"""

import os
import sys

# The repository in place of jobs/, whose tokenize.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfray.cli import main

if __name__ == "__main__":
    main(["tokenize", *sys.argv[1:]])
