"""Map a trained model over a data set and write Parquet.

ray job submit --working-dir . -- python jobs/predict.py --model_folder /shared/training/best --input s3://bucket/input/ --out s3://bucket/predictions
"""

import os
import sys

# The repository in place of jobs/, whose tokenize.py would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfray.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
