"""The special tokens, at the same ids in every tokenizer of tfray."""

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
