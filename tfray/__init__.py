"""tfray: a sequence-to-sequence Transformer on Ray, from raw text to Parquet."""

__version__ = "0.1.0"
