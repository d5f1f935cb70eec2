"""Images: resizing, normalisation and augmentation."""
