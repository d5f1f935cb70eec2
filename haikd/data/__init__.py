"""Data: builders, augmentation, and the pipeline that makes batches."""
