"""Images: their size, scale and augmentation."""
