"""Time and memory: of the quantizer, of tokenizing a data set, of a tokenizer and a sampler."""
