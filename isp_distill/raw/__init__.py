"""The mosaic and its metadata: camera RAW files in and out."""
